"""A save or load that fails on one rank: everybody is told why, and earlier checkpoints stay."""

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_pretrain.checkpoint.planner import PiecePlanner
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.layout import Layout
from llm_pretrain.errors import LostRankError, UserError
from llm_pretrain.world import World
from tests.checkpoint.states import engine_state, load_engine, meta, save_engine, written, wrong
from tests.ranks.functions import RanksError, ends, run

PAIR = Layout(shard=2)


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
    for said in run(tmp_path, PAIR, save_without_folder, tmp_path, 1):
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
    for said in run(tmp_path, PAIR, save_into_file, tmp_path):
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
    results = ends(tmp_path, PAIR, die_in_save, place, victim)
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
    run(tmp_path, PAIR, save_engine, whole)
    shutil.copytree(whole, half)
    for name in written(half):
        (half / "step-000001" / name).unlink()
    with pytest.raises(RanksError) as error:
        run(tmp_path, PAIR, load_from_own, [whole, half])
    assert str(error.value).count("UserError: ") == 2
    assert str(error.value).count("cannot be read on rank 1 (") == 2
    assert "_0.distcp: No such file or directory" in str(error.value)
