"""Memory and speed of a checkpoint that four ranks write and three ranks read.

The ranks are processes of this machine that talk by gloo; FSDP2 cuts parameters and moments over
them. Extra memory is the highest resident size of a rank during the save or the load, less the size
just before; a save's includes its copy of the state, since each save is the first of a fresh saver.
A rank's part is what FSDP2 gives the rank that has most. A save is timed until the checkpoint is
complete, a load until every rank has its values, without the check of all bytes that comes before
it in a run. Each is followed by copying one file of the same size on the same disk, with one fsync
at the end. What is read was written shortly before and is still in the system's memory.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher import LaunchConfig, elastic_launch
from torch.distributed.tensor import DTensor

from benchmarks.result import Row, load_average, parser, ratios, report, workplace
from benchmarks.save import meta
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import fill
from llm_pretrain.config.compose import compose
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.world import World, join

WRITERS, READERS = 4, 3
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sample:
    """One save or load, seen from one rank."""

    seconds: float
    extra: int
    """Bytes of memory above what the rank had before."""
    part: int
    """Bytes of parameters and moments that are this rank's."""
    size: int
    """Bytes of the checkpoint."""
    copy: float
    """Seconds of a plain copy of as many bytes; 0 on other ranks than the first."""


def resident(field: str) -> int:
    """Bytes of memory that this process has (VmRSS) or had at most (VmHWM)."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def timed(action: Callable[[], None], world: World) -> tuple[float, int]:
    """Seconds until all ranks have done it, and bytes of memory that it needed here at most."""
    world.gather(None)
    before = resident("VmRSS")
    _RESET.write_text("5")  # forgets the highest size so far
    began = time.perf_counter()
    action()
    world.gather(None)
    return time.perf_counter() - began, resident("VmHWM") - before


def save(world: World, model: str, place: Path, repetitions: int) -> list[Sample]:
    """Saves of a state of random values; the last checkpoint stays."""
    state = FsdpEngine(compose([f"model={model}"]), world).state()
    own = _own(state)
    for tensor in own:
        tensor.normal_()
    part = sum(tensor.nbytes for tensor in own)
    store, samples = CheckpointStore(place), []
    for step in range(1, repetitions + 1):
        saver = Saver(store, world)

        def action(saver: Saver = saver, step: int = step) -> None:
            saver.start(state, meta(step))
            saver.wait()

        seconds, extra = timed(action, world)
        del saver, action
        samples.append(Sample(seconds, extra, part, *plain_copy(store.path(step), world)))
        if world.main and step < repetitions:
            shutil.rmtree(store.path(step))
    return samples


def load(world: World, model: str, place: Path, repetitions: int) -> list[Sample]:
    """Loads of the newest checkpoint into an engine."""
    engine = FsdpEngine(compose([f"model={model}"]), world)
    store = CheckpointStore(place)
    folder = store.path(store.steps()[-1])
    part = sum(tensor.nbytes for tensor in _own(engine.state()))
    samples = []
    for _ in range(repetitions):
        seconds, extra = timed(
            lambda: engine.load(lambda state: fill(folder, state, group=world.io_group)), world
        )
        samples.append(Sample(seconds, extra, part, *plain_copy(folder, world)))
    return samples


def plain_copy(folder: Path, world: World) -> tuple[int, float]:
    """Size of a checkpoint, and the seconds that rank 0 needs to copy one file of that size."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    source, target = folder.parent / f"plain-{size}", folder.parent / "copy"
    if not world.main:
        return size, 0.0
    if not source.exists():
        with source.open("wb") as out:
            for path in sorted(folder.iterdir()):
                with path.open("rb") as file:
                    shutil.copyfileobj(file, out)
    os.sync()
    began = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return size, seconds


def on_ranks(size: int, function: Callable[..., Any], place: Path, *arguments: Any) -> list[Any]:
    """What `function(world, *arguments)` returns on each of `size` new processes.

    Raises ChildFailedError when one of them fails.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=function.__name__,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        start_method="forkserver",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(place / "logs")),
    )
    results = elastic_launch(launch, _rank)(function, arguments)
    return [results[rank] for rank in range(size)]


def _rank(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    torch.set_num_threads(1)
    with join(EngineConfig(device="cpu")) as world, torch.no_grad():
        return function(world, *arguments)


def _own(state: dict[str, Any]) -> list[torch.Tensor]:
    """This rank's part of each tensor."""
    found: list[torch.Tensor] = []
    for value in state.values():
        if isinstance(value, dict):
            found += _own(value)
        else:
            found.append(value.to_local() if isinstance(value, DTensor) else value)
    return found


def rows(name: str, ranks: Sequence[Sequence[Sample]]) -> list[Row]:
    """Rows about what every rank measured; of memory, the rank that needed most."""
    first = ranks[0]
    extra = [max(s.extra for s in samples) for samples in zip(*ranks, strict=True)]
    part = [max(s.part for s in samples) for samples in zip(*ranks, strict=True)]
    rate = [s.size / s.seconds / 1e6 for s in first]
    copy = [s.size / s.copy / 1e6 for s in first]
    return [
        Row(f"{name}: size of the checkpoint", "MB", [s.size / 1e6 for s in first]),
        Row(f"{name}: a rank's part", "MB", [p / 1e6 for p in part]),
        Row(f"{name}: extra memory of a rank", "MB", [e / 1e6 for e in extra]),
        ratios(f"{name}: extra memory / part", extra, part),
        Row(f"{name}: rate", "MB/s", rate),
        Row("plain copy + fsync of as many bytes", "MB/s", copy),
        ratios(f"{name}: rate / plain copy", rate, copy),
    ]


def measure(place: Path, quick: bool) -> list[Row]:
    """Rows for saves, then for loads."""
    model, repetitions = ("demo", 2) if quick else ("paper/93m", 5)
    work = (model, place / "checkpoints", repetitions)
    saves = on_ranks(WRITERS, save, place, *work)
    loads = on_ranks(READERS, load, place, *work)
    return [
        *rows(f"{model}, save on {WRITERS} ranks", saves),
        *rows(f"{model}, load on {READERS} ranks", loads),
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("reshard", __doc__).parse_args(arguments)
    load_before = load_average()
    with workplace(given.folder) as place:
        found = measure(place.resolve(), given.quick)
    report("reshard", arguments, found, load_before)


if __name__ == "__main__":
    main(sys.argv[1:])
