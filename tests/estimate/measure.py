"""Measures what real ranks allocate and send, for comparison with an estimate.

    python -m tests.estimate.measure < CASES > RESULTS

Both are lists in JSON; a case has `ranks`, `passes`, `overrides`, `backend` and `bucket`, and its
result is a list with one entry for each rank. With the backend "fake" there is only rank 0, which
computes with real tensors and gets nothing from the others: gloo frees buffers in a thread of its
own, a random moment later. `bucket`: elements of DeepSpeed's buckets, which ours would hide the
rest behind; null: as they are.

Ranks are forked here and not by tests.ranks.functions: its server must not import DeepSpeed, which
each rank of each case would then do, and its ranks are all there and meet on gloo.
"""

import gc
import json
import math
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# DeepSpeed takes it from the environment when it is imported.
os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile, record_function

# Nothing public makes a group of ranks that are not there; without it peaks would be noise.
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

from llm_pretrain.checkpoint.staging import Stager
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine import zero_config
from llm_pretrain.engine.build import build_engine
from llm_pretrain.train.average import averages_of
from llm_pretrain.world import World

_MARK = "backward pass begins"
_SIZES = {"float": 4, "c10::BFloat16": 2, "double": 8}
_TYPES = {"float": "float32", "c10::BFloat16": "bfloat16", "double": "float64"}
_EXCHANGES = {
    "c10d::_allgather_base_": ("all-gather", "fsdp", 1),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", "fsdp", 1),
    "_c10d_functional::all_gather_into_tensor": ("all-gather", "dtensor", 0),
    "_c10d_functional::reduce_scatter_tensor": ("reduce-scatter", "dtensor", 0),
    "_c10d_functional::all_reduce": ("all-reduce", "dtensor", 0),
    "gloo:all_reduce": ("all-reduce", "gloo", 0),
}
"""Name of an event -> kind, caller, and which of its arguments is the input."""


def measure(config: TrainConfig, world: World, passes: int) -> dict[str, Any]:
    """Bytes and exchanges of the second update of this rank."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    engine: Any = build_engine(config, world)
    rows = min(config.data.micro_batch, config.data.global_batch // world.data_size)
    tokens = torch.zeros(rows, config.data.sequence_length + 1, dtype=torch.int64)

    def accumulate() -> None:
        for number in range(passes):
            engine.forward_backward(tokens, weight=1 / passes, last=number == passes - 1)

    accumulate()
    engine.step(1e-3)
    held = _storages()
    fsdp = config.engine.name == "fsdp"
    if fsdp:
        engine.model.register_forward_hook(_watch, prepend=True)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True
    ) as profiler:
        accumulate()
        gradients = _bytes([p.grad for p in engine.model.parameters()]) if fsdp else 0
        engine.step(1e-3)
    events = list(profiler.profiler.kineto_results.events())
    parts = engine.parts()
    before = _storages()
    averages = averages_of(config, parts)
    averaged = _storages() - before
    state = engine.state() if fsdp else {"model": {}, "optimizer": {}}
    moments = [t for tensors in state["optimizer"].values() for t in tensors.values() if t.ndim]
    staged = Stager(world.rank, world.size).copy({**state, "average": averages.state()})
    return {
        "process": process,
        "staged": sum(piece.data.nbytes for piece in tree_leaves(staged)),
        "held": held,
        "parameters": _bytes(list(state["model"].values())),
        "moments": _bytes(moments),
        "averages": averaged,
        "gradients": gradients,
        "exchanges": _exchanges(events),
        **_memory(events),
    }


def _watch(_: Any, arguments: Any, losses: torch.Tensor) -> None:
    losses.register_hook(_mark)


def _mark(_: torch.Tensor) -> None:
    with record_function(_MARK):
        pass


def _bytes(tensors: list[Any]) -> int:
    """Of the memory behind some tensors, or behind this rank's parts of them."""
    parts = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parts}
    return sum(storages.values())


def _storages() -> int:
    """Bytes of all tensors that are there."""
    gc.collect()
    return _bytes([t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)])


def _memory(events: list[Any]) -> dict[str, int]:
    """Most bytes allocated during the update, and those that its first forward pass leaves."""
    total = peak = forward = 0
    seen = False
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == _MARK and not seen:
            forward, seen = total, True
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return {"peak": peak, "forward": forward}


def _exchanges(events: list[Any]) -> list[list[Any]]:
    """Kind, caller, type and bytes of the input of each collective."""
    found = []
    for event in events:
        if event.name() in _EXCHANGES:
            kind, caller, index = _EXCHANGES[event.name()]
            shape, dtype = event.shapes()[index], event.dtypes()[index]
            found.append([kind, caller, _TYPES[dtype], math.prod(shape) * _SIZES[dtype]])
    return found


def _rank(rank: int, case: dict[str, Any], place: Path) -> None:
    config = compose([*case["overrides"], "engine.device=cpu"])
    zero_config.BUCKET = case["bucket"] or zero_config.BUCKET
    size = case["ranks"]
    layout = Layout.of(config.engine, size)
    world = World(rank, layout, torch.device("cpu"))
    if size > 1:
        backend = case["backend"]
        gloo = backend == "gloo"
        store = dist.FileStore(str(place / "store"), size) if gloo else FakeStore()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        world = World(rank, layout, torch.device("cpu"), dist.group.WORLD)
    result = measure(config, world, case["passes"])
    (place / str(rank)).write_text(json.dumps(result))
    if size > 1 and gloo:
        dist.barrier()


def _run(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of all ranks; the parent has no threads that a fork would lose."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        ranks = range(1 if case["backend"] == "fake" else case["ranks"])
        for rank in ranks:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    _rank(rank, case, Path(folder))
                    code = 0
                except BaseException:  # noqa: BLE001  (a forked rank must not go on as its parent)
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            raise RuntimeError(f"{case}: ranks ended with {codes}")
        return [json.loads((Path(folder) / str(r)).read_text()) for r in ranks]


def main() -> None:
    """Run the cases of standard input."""
    cases = json.load(sys.stdin)
    if any("engine=deepspeed" in case["overrides"] for case in cases):
        # With what its first engine imports.
        __import__("deepspeed.runtime.zero.muon.muon_optimizer")
    # What is imported holds no memory of a rank: no search for its tensors looks at that again.
    gc.collect()
    gc.freeze()
    # Libraries write to standard output, too.
    output = os.dup(1)
    os.dup2(2, 1)
    results = [_run(case) for case in cases]
    os.write(output, json.dumps(results).encode())


if __name__ == "__main__":
    main()
