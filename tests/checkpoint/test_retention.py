"""What is kept, and that no branch ever loses the checkpoint it starts from."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.checkpoint.retention import kept, prune, restore_hidden
from llm_pretrain.checkpoint.store import CheckpointStore


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    for step in range(100, 1100, 100):
        (tmp_path / f"step-{step:06d}").mkdir()
    return CheckpointStore(tmp_path)


def test_last_every_planned_and_pinned(store: CheckpointStore) -> None:
    deleted = prune(store, last=2, every=400, planned={300}, pinned=lambda: {700})
    assert store.steps() == [300, 400, 700, 800, 900, 1000]
    assert deleted == [100, 200, 500, 600]
    assert prune(store, last=2, every=400, planned={300}, pinned=lambda: {700}) == []


@given(
    st.sets(st.integers(1, 50)), st.integers(1, 5), st.integers(0, 7), st.sets(st.integers(1, 50))
)
def test_pins_and_the_newest_always_stay(
    steps: set[int], last: int, every: int, pinned: set[int]
) -> None:
    result = kept(steps, last, every, pinned)
    assert result <= steps
    assert pinned & steps <= result
    assert set(sorted(steps)[-last:]) <= result
    for step in steps - result:
        assert not every or step % every


def test_a_pin_that_comes_while_deleting_saves_the_checkpoint(store: CheckpointStore) -> None:
    """The worst moment: the pin is written after the first look and before the second."""
    looks = iter([set(), *[{500}] * 100])
    prune(store, last=2, every=0, planned=set(), pinned=lambda: next(looks))
    assert store.steps() == [500, 900, 1000]


def test_a_process_killed_while_deleting_hides_nothing(store: CheckpointStore) -> None:
    (store.root / "step-000500").rename(store.root / ".hidden-step-000500")
    restore_hidden(store)
    assert 500 in store.steps()


def test_pinning_and_pruning_race(tmp_path: Path) -> None:
    """Whoever pins first and then sees the checkpoint keeps it, in 200 races."""
    for round_ in range(200):
        root = tmp_path / str(round_)
        for step in (1, 2, 3):
            (root / f"step-{step:06d}").mkdir(parents=True)
        store, pins = CheckpointStore(root), set[int]()
        thread = threading.Thread(target=prune, args=(store, 1, 0, set(), lambda p=pins: set(p)))
        thread.start()
        pins.add(1)
        seen = store.has(1)
        thread.join()
        assert store.has(1) or not seen
