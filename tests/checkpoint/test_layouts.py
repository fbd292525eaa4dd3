"""Checkpoints of several ranks: any layout reads what another wrote; each value is there once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from llm_pretrain.checkpoint import staging
from llm_pretrain.checkpoint.planner import PiecePlanner
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.staging import Stager
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.layout import Layout
from llm_pretrain.world import World
from tests.checkpoint.states import (
    dcp_tensors,
    engine_state,
    leaves,
    load_engine,
    meta,
    save_engine,
    truth,
    written,
    wrong,
)
from tests.ranks.functions import run

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
    for reading in ("one", "shard 2", "shard 3", "shard 2 x tensor 2"):
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


def stage_engine(world: World) -> int:
    """Bytes of the pieces that this rank keeps on the host, but for single numbers."""
    staging.PIECE_BYTES = 512
    staged = Stager(world.rank, world.size).copy(engine_state(world))
    pieces = [piece for _, pieces in leaves(staged) for piece in pieces]
    return sum(piece.data.nbytes for piece in pieces if piece.shape)


def test_a_rank_keeps_only_what_it_writes(tmp_path: Path) -> None:
    once = run(tmp_path, LAYOUTS["shard 2"], stage_engine)
    twice = run(tmp_path, LAYOUTS["2 x shard 2"], stage_engine)
    assert sum(twice) == sum(once)
    assert max(twice) < 0.7 * max(once)


def strange_state(world: World) -> dict[str, Any]:
    """What engines could make: few rows, several meshes, other dimensions and types, functions."""
    line = init_device_mesh("cpu", (world.size,))
    grid = init_device_mesh("cpu", (2, world.size // 2), mesh_dim_names=("a", "b"))
    half = DeviceMesh("cpu", list(range(world.size // 2)))

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
        "copies that do not show": ((12, 2), grid["b"], [Shard(0)]),
        "on half of the ranks": ((11, 2), half, [Shard(0)]),
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
    assert len(found) == 10 + 10 + 3
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
