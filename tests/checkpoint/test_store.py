"""Checkpoints: complete or absent, and every damage is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_pretrain.checkpoint import manifest
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import fill, keys
from llm_pretrain.checkpoint.verify import latest
from llm_pretrain.config.layout import Layout
from llm_pretrain.errors import DamagedCheckpointError, UserError
from llm_pretrain.world import World
from tests.checkpoint.states import meta

WORLD = World(0, Layout(), torch.device("cpu"))


def state(seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "model": {"w": torch.randn(40, 30, generator=draw), "b": torch.randn(7, generator=draw)},
        "optimizer": {"w": {"step": torch.tensor(3.0)}},
    }


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A store with checkpoints at 10, 20 and 30."""
    store = CheckpointStore(tmp_path / "checkpoints")
    store.root.mkdir()
    saver = Saver(store, WORLD)
    for step in (10, 20, 30):
        saver.start(state(step), meta(step))
    saver.wait()
    return store


def test_saved_and_loaded(store: CheckpointStore) -> None:
    assert store.steps() == [10, 20, 30]
    target = state(99)
    fill(store.path(20), target)
    assert torch.equal(target["model"]["w"], state(20)["model"]["w"])
    assert store.verify(20).tokens == 200
    assert "model.w" in keys(store.path(20))


def test_the_copy_is_taken_before_training_goes_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    saver, live = Saver(store, WORLD), state(1)
    saver.start(live, meta(1))
    live["model"]["w"].zero_()
    saver.wait()
    target = state(2)
    fill(store.path(1), target)
    assert torch.equal(target["model"]["w"], state(1)["model"]["w"])


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    saver = Saver(store, WORLD)
    for step in (1, 2, 3):
        saver.start(state(step), meta(step))
        assert store.steps() in (list(range(1, step)), list(range(1, step + 1)))
    saver.wait()
    assert store.steps() == [1, 2, 3]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.json", "manifest.json"])
def test_every_damage_is_named(
    store: CheckpointStore, damage: Callable[[Path], None], name: str
) -> None:
    damage(store.path(30) / name)
    with pytest.raises(DamagedCheckpointError) as error:
        store.verify(30)
    assert "step-000030" in str(error.value)
    assert name in str(error.value)
    newest, damaged = latest(store, WORLD)
    assert newest is not None
    assert newest.step == 20
    assert len(damaged) == 1


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(store: CheckpointStore) -> None:
    path = store.path(30) / manifest.NAME
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        content = bytearray(original)
        content[position] ^= 1
        path.write_bytes(content)
        try:
            store.verify(30)
        except DamagedCheckpointError:
            continue
        # Only white space may differ without harm to what is checked.
        assert original[position : position + 1].isspace(), position


def test_no_checkpoint_at_a_step(store: CheckpointStore) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at step 15; there are .* 10, 20, 30"):
        store.verify(15)


def test_half_written_folders_are_no_checkpoints(store: CheckpointStore) -> None:
    store.begin(40)
    (store.temporary(40) / "__0_0.distcp").write_bytes(b"half")
    assert store.steps() == [10, 20, 30]
    store.sweep()
    assert not store.temporary(40).exists()


def test_set_aside(store: CheckpointStore) -> None:
    store.set_aside(30)
    assert store.steps() == [10, 20]
    Saver(store, WORLD).start(state(30), meta(30))


def test_identity_follows_the_content(store: CheckpointStore, tmp_path: Path) -> None:
    """Equal for the same files, hashed anew in another order; another one after any change."""
    assert len({store.identity(step) for step in store.steps()}) == 3
    twin = tmp_path / "twin"
    shutil.copytree(store.path(10), twin, ignore=shutil.ignore_patterns(manifest.NAME))
    paths = sorted(twin.iterdir(), reverse=True)

    def identity() -> str:
        manifest.write(twin, {path.name: manifest.entry(path) for path in paths})
        return manifest.identity(twin)

    assert identity() == store.identity(10)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert identity() != store.identity(10)
        path.write_bytes(content)
    assert identity() == store.identity(10)
