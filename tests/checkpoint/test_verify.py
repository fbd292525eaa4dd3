"""Ranks that verify together: every file is somebody's, and what one finds all are told."""

from pathlib import Path

from llm_pretrain.checkpoint import manifest
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.verify import latest
from llm_pretrain.config.layout import Layout
from llm_pretrain.errors import DamagedCheckpointError
from llm_pretrain.world import World
from tests.checkpoint.states import save_engine, written
from tests.ranks.functions import run


def look(world: World, place: Path) -> tuple[int | None, list[str], bool]:
    """The newest whole step, what all heard of damages, and whether this rank found one itself."""
    store = CheckpointStore(place)
    try:
        manifest.verify(store.path(1), world.rank, world.size)
        finds = False
    except DamagedCheckpointError:
        finds = True
    meta, damaged = latest(store, world)
    return meta.step if meta else None, [str(error) for error in damaged], finds


def test_a_damage_is_found_once_and_told_to_all(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    run(tmp_path, Layout(shard=3), save_engine, place)
    for size in (1, 2, 4):
        whole = run(tmp_path, Layout(shard=size), look, place)
        assert whole == [(1, [], False)] * size
    for name in [*written(place), ".metadata"]:
        path = place / "step-000001" / name
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        answers = run(tmp_path, Layout(shard=3), look, place)
        for step, said, _ in answers:
            assert step is None
            assert len(said) == 1
            assert f"({name}: wrong checksum)" in said[0]
        assert [finds for *_, finds in answers].count(True) == 1
        path.write_bytes(content)
