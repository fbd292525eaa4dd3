"""Tokens per second of the loader against reading the same file from front to end.

The loader shuffles: each row of a batch is read at a place of its own. The other side knows no
order, mixture or epoch: it takes the next stretch of a numpy memmap and widens it to int64 in the
shape of a batch. Both make as many int64 per batch and run on one thread. The file holds random
ids in 2 bytes each; file and page tables are in memory before anything is timed.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks.result import Row, load_average, parser, ratios, report, workplace
from llm_pretrain.config.data import DataConfig, SourceConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import Prepared, PreparedSource
from llm_pretrain.data.shards import TokenStream, write_shard

SHAPES = ((256, 8), (1024, 512), (4096, 256))
"""Sequence length and sequences per batch."""
WEIGHTS = (0.6, 0.3, 0.1)
"""Of three sources, which are the same file under three names, each shuffled by its own key."""
VOCABULARY = 50_304
_DOCUMENT = 1_000_000


def write_tokens(folder: Path, count: int) -> TokenStream:
    """A stream of `count` random tokens, read once."""
    draw = np.random.default_rng(0)
    sizes = [min(_DOCUMENT, count - start) for start in range(0, count, _DOCUMENT)]
    documents = (draw.integers(0, VOCABULARY, size, dtype=np.uint16) for size in sizes)
    folder.mkdir()
    write_shard(folder / "random.ds", documents, "random", 2)
    stream = TokenStream(folder)
    stream.read(0, len(stream)).sum()
    return stream


def loader(stream: TokenStream, length: int, batch: int, sources: int) -> Loader:
    """The real loader over one stream under one or three names."""
    names = [f"source{i}" for i in range(sources)]
    prepared = {name: PreparedSource(stream, stream, name) for name in names}
    data = DataConfig(
        sequence_length=length,
        global_batch=batch,
        micro_batch=batch,
        sources={n: SourceConfig(weight=w) for n, w in zip(names, WEIGHTS, strict=False)},
    )
    # The tokenizer is not looked at.
    return Loader(TrainConfig(data=data), Prepared(prepared, cast(Any, None)))


def sequential(path: Path, length: int, batch: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """The batch of a step as the next stretch of the file, from the front again at its end."""
    tokens = np.memmap(path, np.uint16, "r").view(np.ndarray)
    tokens.sum()
    each = batch * (length + 1)
    steps = tokens.size // each

    def read(step: int) -> npt.NDArray[np.int64]:
        start = step % steps * each
        return tokens[start : start + each].astype(np.int64).reshape(batch, length + 1)

    return read


def rate(make: Callable[[int], Any], steps: Iterator[int], tokens: int, seconds: float) -> float:
    """Tokens per second of `make` over at least `seconds`; a batch trains on `tokens`."""
    made, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        make(next(steps))
        made += 1
    return made * tokens / (time.perf_counter() - began)


def measure(place: Path, quick: bool) -> list[Row]:
    """Rows for every shape and number of sources."""
    count, repetitions, seconds = (3_000_000, 2, 0.01) if quick else (200_000_000, 7, 0.5)
    stream = write_tokens(place / "tokens", count)
    rows: list[Row] = []
    for length, batch in SHAPES:
        plain = sequential(place / "tokens" / "random.ds", length, batch)
        for sources in (1, len(WEIGHTS)):
            ours = loader(stream, length, batch, sources)
            pair: list[list[float]] = [[], []]
            steps = [iter(range(10**9)), iter(range(10**9))]
            for _ in range(repetitions):
                for side, make in enumerate((ours.batch, plain)):
                    pair[side].append(rate(make, steps[side], batch * length, seconds))
            name = f"{length} x {batch}, {sources} source{'s' if sources > 1 else ''}"
            rows += [
                Row(f"{name}: loader", "Mtokens/s", [r / 1e6 for r in pair[0]]),
                Row(f"{name}: sequential read", "Mtokens/s", [r / 1e6 for r in pair[1]]),
                ratios(f"{name}: loader / sequential", *pair),
            ]
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("loader", __doc__).parse_args(arguments)
    load = load_average()
    with workplace(given.folder) as place:
        rows = measure(place, given.quick)
    report("loader", arguments, rows, load)


if __name__ == "__main__":
    main(sys.argv[1:])
