"""Print the README's tables: `python -m tests.engine.table [OVERRIDE ...]` of layouts and engines,
`python -m tests.engine.table optimizers` of update rules.

About a minute each on two cores. The overrides are those of `train`.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from llm_pretrain.config.layout import Layout
from tests.engine.layouts import LAYOUTS, Fleet, table
from tests.engine.rules import RULES, configured, losses_of
from tests.engine.zero import alone
from tests.ranks.commands import zygote
from tests.ranks.functions import run
from tests.support import write_corpus


def layouts(place: Path, overrides: Sequence[str]) -> None:
    """Train every layout in a folder and print the table."""
    with ExitStack() as stack:
        corpus, logs = place / "words.jsonl", place / "logs"
        logs.mkdir()
        plain = stack.enter_context(zygote(corpus, logs))
        deepspeed = stack.enter_context(zygote(corpus, logs, "deepspeed"))
        fleet = Fleet(place, place / "cache", lambda lay: deepspeed if lay.deepspeed else plain)
        runs = {name: fleet.train(layout, *overrides) for name, layout in LAYOUTS.items()}
        print(table(runs))


def optimizers(place: Path) -> None:
    """Train with every rule under some layouts; print how far losses are from one process's."""
    cuts = {
        "FSDP 2": Layout(shard=2),
        "HSDP 2x2": Layout(replicate=2, shard=2),
        "tensor 2, FSDP 2": Layout(shard=2, tensor=2),
        "context 2": Layout(context=2),
    }
    asked = {
        name: (cut, [f"engine.{n}={size}" for n, size in asdict(cut).items()])
        for name, cut in cuts.items()
    }
    for stage in (1, 2, 3):
        zero = ["engine=deepspeed", f"engine.zero_stage={stage}"]
        asked[f"ZeRO-{stage} 2"] = (Layout(shard=2), zero)
    plain = losses_of(alone(), [configured(*rule) for rule in RULES.values()])
    columns = []
    for cut, engine in asked.values():
        configs = [configured(*rule, *engine) for rule in RULES.values()]
        losses = run(place, cut, losses_of, configs)[0]
        columns.append([_worst(own, one) for own, one in zip(losses, plain, strict=True)])
    print("| | " + " | ".join(asked) + " |\n|---" + "|---:" * len(asked) + "|")
    for name, row in zip(RULES, zip(*columns, strict=True), strict=True):
        print(f"| {name} | " + " | ".join(f"{worst:.1e}" for worst in row) + " |")


def _worst(losses: Sequence[float], one: Sequence[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(losses, one, strict=True))


def main(arguments: list[str]) -> None:
    """Print one of the tables."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_corpus(place / "words.jsonl")
        os.environ["TINY_CORPUS"] = str(place / "words.jsonl")
        if arguments == ["optimizers"]:
            optimizers(place)
        else:
            layouts(place, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
