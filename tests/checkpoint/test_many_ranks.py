"""Checkpoints of several ranks: any layout reads what any other wrote; a failure is everybody's."""

import hashlib
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from llm_pretrain.checkpoint import staging
from llm_pretrain.checkpoint.planner import PiecePlanner
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import fill
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.engine.layout import Layout
from llm_pretrain.errors import LostRankError, UserError
from llm_pretrain.world import World
from tests.checkpoint.ranks import RanksError, ends, run

# Cut in two by tensor parallelism, 34 and 14 rows leave 17 and 7, which nothing divides; the 4
# rows of a query projection leave one of three shards empty.
MODEL = ModelConfig(vocab_size=34, width=12, layers=1, heads=2, kv_heads=2, head_dim=4, ffn=14)
CONFIG = TrainConfig(model=MODEL)
LAYOUTS = {
    "one": Layout(),
    "shard 2": Layout(shard=2),
    "shard 3": Layout(shard=3),
    "shard 4": Layout(shard=4),
    "copies": Layout(replicate=2),
    "2 x shard 2": Layout(replicate=2, shard=2),
    "shard 2 x tensor 2": Layout(shard=2, tensor=2),
    "shard 3 x tensor 2": Layout(shard=3, tensor=2),
    "2 x shard 2 x tensor 2": Layout(replicate=2, shard=2, tensor=2),
}


def meta(step: int) -> dict[str, Any]:
    return {
        "step": step, "tokens": 0, "run": "a", "fingerprints": {}, "schedule": {}, "config": {},
        "world_size": 1, "engine": "fsdp", "created": "now",
    }  # fmt: skip


def leaves(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a state under its full name."""
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


def save_engine(world: World, place: Path) -> int:
    """Save at step 1; the bytes of this rank's part of the model and moments."""
    staging.PIECE_BYTES = 512
    saver = Saver(CheckpointStore(place), world)
    state = engine_state(world)
    saver.start(state, meta(1))
    saver.wait()
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for _, t in leaves(state))


def load_engine(world: World, place: Path) -> list[str]:
    """The names of tensors that were not read as they were written."""
    engine = FsdpEngine(CONFIG, world)
    engine.load(lambda state: fill(place / "step-000001", state, group=world.io_group))
    return wrong(engine.state())


def dcp_tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, read by torch's own converter."""
    out = folder.with_suffix(".pt")
    dcp_to_torch_save(folder, out)
    loaded: dict[str, Any] = torch.load(out)
    out.unlink()
    return loaded


def written(place: Path, step: int = 1) -> dict[str, int]:
    """Size of each file with tensors."""
    return {f.name: f.stat().st_size for f in (place / f"step-{step:06d}").glob("*.distcp")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_any_layout_holds_every_value(layout: str, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    run(tmp_path, LAYOUTS[layout], save_engine, place)
    CheckpointStore(place).verify(1)
    assert wrong(dcp_tensors(place / "step-000001")) == []


@pytest.mark.parametrize("written_on", ["one", "shard 4", "2 x shard 2", "shard 3 x tensor 2"])
def test_any_layout_reads_it(written_on: str, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    run(tmp_path, LAYOUTS[written_on], save_engine, place)
    for reading in ("one", "shard 2", "shard 3", "2 x shard 2", "shard 3 x tensor 2"):
        found = run(tmp_path, LAYOUTS[reading], load_engine, place)
        assert not any(found), (reading, found)


def test_copies_are_written_once_and_by_turns(tmp_path: Path) -> None:
    sizes = {}
    for name in ("shard 2", "2 x shard 2"):
        place = tmp_path / name
        run(tmp_path, LAYOUTS[name], save_engine, place)
        sizes[name] = written(place)
    once, twice = sizes["shard 2"], sizes["2 x shard 2"]
    assert sum(twice.values()) == sum(once.values())
    assert len(twice) == 4
    assert max(twice.values()) < 0.7 * max(once.values())


def strange_state(world: World) -> dict[str, Any]:
    """What engines could make: few rows, several meshes, other dimensions and types, functions."""
    line = init_device_mesh("cpu", (world.size,))
    grid = init_device_mesh("cpu", (2, world.size // 2))

    def cut(name: str, shape: tuple[int, ...], mesh: Any, placements: Any) -> DTensor:
        value = truth(name, torch.Size(shape))
        return distribute_tensor(value, mesh, placements, src_data_rank=None)

    wanted = {
        "uneven": ((10, 3), line, [Shard(0)]),
        "fewer rows than ranks": ((3, 5), line, [Shard(0)]),
        "one row": ((1, 7), line, [Shard(0)]),
        "columns": ((6, 10), line, [Shard(1)]),
        "grid": ((7, 5), grid, [Shard(0), Shard(1)]),
        "twice the same dimension": ((13, 2), grid, [Shard(0), Shard(0)]),
        "copies of rows": ((9, 4), grid, [Replicate(), Shard(0)]),
        "copies": ((8, 3), grid, [Replicate(), Replicate()]),
    }
    state: dict[str, Any] = {name: cut(name, *how) for name, how in wanted.items()}
    state |= {f"late {n}": lambda n=n, h=h: cut(f"late {n}", *h) for n, h in wanted.items()}
    state["late and whole"] = lambda: truth("late and whole", torch.Size((50, 6)))
    return {
        **state,
        "plain": truth("plain", torch.Size((5, 5))),
        "scalar": truth("scalar", torch.Size()),
    }


def save_strange(world: World, place: Path) -> None:
    staging.PIECE_BYTES = 40
    saver = Saver(CheckpointStore(place), world)
    saver.start(strange_state(world), meta(1))
    saver.wait()


@pytest.mark.parametrize("size", [2, 4, 6])
def test_what_engines_could_make(size: int, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    run(tmp_path, Layout(shard=size), save_strange, place)
    found = dcp_tensors(place / "step-000001")
    assert len(found) == 8 + 8 + 3
    assert wrong(found) == []


def save_and_change(world: World, place: Path) -> list[bool]:
    """Three saves of one saver, a fourth of another shape, and those of a second run in between."""
    planned = []
    planner = PiecePlanner.create_global_plan

    def counting(self: PiecePlanner, plans: Any) -> Any:
        planned.append(self.reuse)
        return planner(self, plans)

    PiecePlanner.create_global_plan = counting  # type: ignore[method-assign]
    mesh = init_device_mesh("cpu", (world.size,)) if world.size > 1 else None

    def state(rows: int, seed: int) -> dict[str, Any]:
        whole = truth("model.w", torch.Size((rows, 3)), seed)
        cut = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None) if mesh else whole
        return {"model": {"w": cut}}

    first, second = (Saver(CheckpointStore(place / run), world) for run in "ab")
    for step in (1, 2, 3):
        for saver, rows in ((first, 10), (second, 8)):
            saver.start(state(rows, step), meta(step))
            saver.wait()
    first.start(state(12, 4), meta(4))
    first.wait()
    return planned


@pytest.mark.parametrize("size", [1, 2])
def test_plans_are_remembered_by_each_saver_for_itself(size: int, tmp_path: Path) -> None:
    planned, *_ = run(tmp_path, Layout(shard=size), save_and_change, tmp_path)
    assert sorted(planned) == [False] * 3 + [True] * 4
    for run_, steps in (("a", (1, 2, 3, 4)), ("b", (1, 2, 3))):
        for step in steps:
            CheckpointStore(tmp_path / run_).verify(step)
            assert wrong(dcp_tensors(tmp_path / run_ / f"step-{step:06d}"), seed=step) == []


def save_with_limit(world: World, place: Path, victim: int) -> tuple[str, list[str], list[int]]:
    """Save at step 1, at step 2 with a limit on the size of a rank's files, and at step 3 without.

    What the second save said, which live tensors differ after it, and the steps there then.
    """
    store = CheckpointStore(place)
    saver, state = Saver(store, world), engine_state(world)
    saver.start(state, meta(1))
    saver.wait()
    world.gather(None)
    if world.rank == victim:
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))
    saver.start(state, meta(2))
    try:
        saver.wait()
        said = "nothing"
    except UserError as error:
        said = str(error)
    left = store.steps() if world.main else []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    changed = wrong(state)
    saver.start(state, meta(3))
    saver.wait()
    return said, changed, left


@pytest.mark.parametrize(("size", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_disk_error_on_one_rank_is_everybodys(size: int, victim: int, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    results = run(tmp_path, Layout(shard=size), save_with_limit, place, victim)
    where = f"rank {victim}: " if size > 1 else ""
    for said, changed, _ in results:
        assert f"step-000002: the checkpoint could not be written ({where}File too large)" in said
        assert "earlier ones are intact" in said
        assert changed == []
    assert results[0][2] == [1]
    store = CheckpointStore(place)
    for step in (1, 3):
        store.verify(step)
    assert sorted(p.name for p in place.iterdir()) == ["step-000001", "step-000003"]


def save_without_folder(world: World, place: Path, victim: int) -> str:
    """Save where one rank sees another folder, as with a run on a node's own disk."""
    own = place / "elsewhere" if world.rank == victim else place / "shared"
    saver = Saver(CheckpointStore(own), world)
    saver.start(engine_state(world), meta(1))
    with pytest.raises(UserError) as error:
        saver.wait()
    return str(error.value)


def test_a_rank_that_does_not_see_the_folder(tmp_path: Path) -> None:
    for said in run(tmp_path, Layout(shard=2), save_without_folder, tmp_path, 1):
        assert "rank 1: __1_0.distcp: No such file or directory; every rank must see" in said
    assert list((tmp_path / "shared").iterdir()) == []
    assert not (tmp_path / "elsewhere").exists()


def save_into_file(world: World, place: Path) -> str:
    saver = Saver(CheckpointStore(place / "file" / "checkpoints"), world)
    saver.start(engine_state(world), meta(1))
    with pytest.raises(UserError) as error:
        saver.wait()
    return str(error.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for said in run(tmp_path, Layout(shard=2), save_into_file, tmp_path):
        assert "rank 0: " in said
        assert "Not a directory" in said


def die_in_save(world: World, place: Path, victim: int) -> str:
    """Save at step 1; a rank is killed while it writes step 2. What the survivor is told."""
    store = CheckpointStore(place)
    saver, state = Saver(store, world), engine_state(world)
    saver.start(state, meta(1))
    saver.wait()

    def resolve(*_: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.empty(0)

    if world.rank == victim:
        PiecePlanner.resolve_data = resolve  # type: ignore[method-assign]
    saver.start(state, meta(2))
    try:
        saver.wait()
    except LostRankError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_a_save_is_not_a_disk_error(victim: int, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    results = ends(tmp_path, Layout(shard=2), die_in_save, place, victim)
    assert results[victim] == "died"
    assert "another rank is lost" in results[1 - victim][0]
    store = CheckpointStore(place)
    assert store.steps() == [1]
    store.verify(1)
    store.sweep()
    assert [p.name for p in place.iterdir()] == ["step-000001"]


def load_from_own(world: World, places: list[Path]) -> None:
    load_engine(world, places[world.rank])


def test_a_rank_that_cannot_read(tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(tmp_path, Layout(shard=2), save_engine, whole)
    shutil.copytree(whole, half)
    for name in written(half):
        (half / "step-000001" / name).unlink()
    with pytest.raises(RanksError) as error:
        run(tmp_path, Layout(shard=2), load_from_own, [whole, half])
    assert str(error.value).count("UserError: ") == 2
    assert str(error.value).count("cannot be read on rank 1 (") == 2
    assert "_0.distcp: No such file or directory" in str(error.value)
