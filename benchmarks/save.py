"""How long a save holds up training, how long until it is complete, and what the disk could do.

A save copies parameters, moments and generator states to host memory while training waits, then a
thread writes and hashes, flushes and renames. The first save of a session also allocates the host
memory. Each save is followed by writing as many bytes to one file on the same disk, with one
fsync at the end: the best that a checkpoint could do. Nothing trains meanwhile.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import Row, load_average, parser, ratios, report, synchronize, workplace
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import compose
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.records import now
from llm_pretrain.train.state import checkpoint_state
from llm_pretrain.world import World, join

MODELS = ("demo", "paper/93m")
_CHUNK = 64 * 2**20


@dataclass
class Timings:
    """What one kind of save took, one entry a repetition."""

    stall: list[float] = field(default_factory=list)
    complete: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)

    def rows(self, name: str) -> list[Row]:
        """Rows about saves called `name`."""
        rates = [n / s / 1e6 for n, s in zip(self.size, self.complete, strict=True)]
        plain = [n / s / 1e6 for n, s in zip(self.size, self.plain, strict=True)]
        return [
            Row(f"{name}: training waits", "s", self.stall),
            Row(f"{name}: until complete", "s", self.complete),
            Row(f"{name}: size", "MB", [n / 1e6 for n in self.size]),
            Row(f"{name}: rate", "MB/s", rates),
            Row("plain write + fsync of as many bytes", "MB/s", plain),
            ratios(f"{name}: rate / plain write", rates, plain),
        ]


def meta(step: int) -> dict[str, Any]:
    """Something for the fields that are no tensors; they are a few hundred bytes."""
    empty: dict[str, Any] = {"fingerprints": {}, "schedule": {}, "config": {}}
    run = {"step": step, "tokens": 0, "run": "benchmark", "created": now()}
    return {**run, **empty, "world_size": 1, "engine": "fsdp"}


def save_once(
    store: CheckpointStore,
    saver: Saver,
    state: Callable[[], dict[str, Any]],
    step: int,
    to: Timings,
) -> None:
    """Save, then write the same amount plainly; both are deleted again."""
    synchronize()
    began = time.perf_counter()
    saver.start(state(), meta(step))
    to.stall.append(time.perf_counter() - began)
    saver.wait()
    to.complete.append(time.perf_counter() - began)
    folder = store.path(step)
    size = sum(path.stat().st_size for path in folder.iterdir())
    shutil.rmtree(folder)
    to.size.append(size)
    to.plain.append(plain_write(store.root / "plain", size))


def plain_write(path: Path, size: int) -> float:
    """Seconds to write `size` bytes one after the other and to flush them."""
    chunk = memoryview(os.urandom(min(size, _CHUNK)))
    os.sync()
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(chunk)):
            file.write(chunk[: min(len(chunk), size - start)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def measure(model: str, place: Path, world: World, repetitions: int) -> list[Row]:
    """Rows for one model: first saves, then later ones."""
    engine = FsdpEngine(compose([f"model={model}"]), world)
    store, step = CheckpointStore(place), 0
    parameters = sum(p.numel() for p in engine.model.parameters())
    first, later = Timings(), Timings()
    saver = Saver(store, world)
    for timings in (first, later):
        for _ in range(repetitions):
            if timings is first:
                saver = Saver(store, world)
            step += 1
            save_once(store, saver, lambda: checkpoint_state(engine, world), step, timings)
    name = f"{model} ({parameters / 1e6:.1f}M)"
    return [*first.rows(f"{name}, first save"), *later.rows(f"{name}, later save")]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("save", __doc__).parse_args(arguments)
    load = load_average()
    models, repetitions = (MODELS[:1], 2) if given.quick else (MODELS, 5)
    rows: list[Row] = []
    with workplace(given.folder) as place, join(EngineConfig()) as world, torch.no_grad():
        for model in models:
            rows += measure(model, place / "checkpoints", world, repetitions)
    report("save", arguments, rows, load)


if __name__ == "__main__":
    main(sys.argv[1:])
