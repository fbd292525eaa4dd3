"""States with values that are known everywhere, for tests of checkpoints."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor, distribute_tensor

from llm_pretrain.checkpoint import staging
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import fill
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.world import World

# Cut in two by tensor parallelism, 34 and 14 rows leave 17 and 7, which nothing divides; the 4
# rows of a query projection leave one of three shards empty.
MODEL = ModelConfig(vocab_size=34, width=12, layers=1, heads=2, kv_heads=2, head_dim=4, ffn=14)
CONFIG = TrainConfig(model=MODEL)


def meta(step: int) -> dict[str, Any]:
    """What `Saver.start` is told of a state that no run made."""
    return {
        "step": step, "tokens": step * 10, "run": "a", "fingerprints": {}, "schedule": {},
        "config": {}, "world_size": 1, "engine": "fsdp", "created": "now",
    }  # fmt: skip


def leaves(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a state under its full name."""
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def truth(name: str, shape: torch.Size, seed: int = 0) -> torch.Tensor:
    """What a tensor holds, known to every rank without asking another."""
    number = int.from_bytes(hashlib.sha256(f"{name}{seed}".encode()).digest()[:4], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def put_truth(state: dict[str, Any], seed: int = 0) -> None:
    """Set every tensor, or this rank's part of it, to what it should hold."""
    for name, live in leaves(state):
        value = truth(name, live.shape, seed)
        if isinstance(live, DTensor):
            mesh, placements = live.device_mesh, live.placements
            part = distribute_tensor(value, mesh, placements, src_data_rank=None)
            live.to_local().copy_(part.to_local())
        else:
            live.copy_(value)


def wrong(state: dict[str, Any], seed: int = 0) -> list[str]:
    """Names of the tensors that do not hold their truth to the last bit."""
    found = []
    for name, live in leaves(state):
        value = live.full_tensor() if isinstance(live, DTensor) else live
        if not torch.equal(value, truth(name, value.shape, seed)):
            found.append(name)
    return found


def engine_state(world: World) -> dict[str, Any]:
    """The state of a real engine, no two values alike."""
    state = FsdpEngine(CONFIG, world).state()
    with torch.no_grad():
        put_truth(state)
    return state


def dcp_tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, read by torch's own converter."""
    out = folder.with_suffix(".pt")
    dcp_to_torch_save(folder, out)
    loaded: dict[str, Any] = torch.load(out)
    out.unlink()
    return loaded


def save_engine(world: World, place: Path) -> None:
    """Save at step 1 in small pieces."""
    staging.PIECE_BYTES = 512
    saver = Saver(CheckpointStore(place), world)
    saver.start(engine_state(world), meta(1))
    saver.wait()


def load_engine(world: World, place: Path) -> list[str]:
    """The names of tensors that were not read as they were written."""
    engine = FsdpEngine(CONFIG, world)
    engine.load(lambda state: fill(place / "step-000001", state, group=world.io_group))
    return wrong(engine.state())


def written(place: Path, step: int = 1) -> dict[str, int]:
    """Size of each file with tensors."""
    return {f.name: f.stat().st_size for f in (place / f"step-{step:06d}").glob("*.distcp")}
