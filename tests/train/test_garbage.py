"""When Python looks for reference cycles, with real cycles."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from llm_pretrain.train.garbage import ALL_EVERY, EVERY, Collector


class Node:
    """Refers to itself, so that only the search can free it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """As Python starts."""
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def cycle() -> "weakref.ref[Node]":
    return weakref.ref(Node())


def churn() -> None:
    """More objects than the thresholds of every generation."""
    first, second, third = gc.get_threshold()
    kept = [[] for _ in range(2 * first * max(1, second) * max(1, min(third, 10)))]
    del kept


def test_no_search_by_itself_inside() -> None:
    with Collector():
        assert not gc.isenabled()
        node = cycle()
        churn()
        assert node() is not None
    assert gc.isenabled()
    node = cycle()
    churn()
    assert node() is None


def test_a_search_at_every_so_many_steps() -> None:
    with Collector() as collector:
        node = cycle()
        for step in range(EVERY + 1, 2 * EVERY):
            collector.after(step)
        assert node() is not None
        collector.after(2 * EVERY)
        assert node() is None


def test_old_objects_are_searched_more_rarely() -> None:
    with Collector() as collector:
        held = Node()
        node = weakref.ref(held)
        # Seen in use twice, it belongs to the oldest generation.
        collector.after(EVERY)
        collector.after(2 * EVERY)
        del held
        collector.after(3 * EVERY)
        assert node() is not None
        collector.after(ALL_EVERY)
        assert node() is None


def test_an_error_leaves_it_on() -> None:
    with pytest.raises(KeyboardInterrupt), Collector():
        raise KeyboardInterrupt
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_was_there_before_is_looked_at_again_after() -> None:
    """Inside it is frozen: a search does not find it, however dead."""
    node = Node()
    dead = weakref.ref(node)
    with Collector() as collector:
        assert gc.get_freeze_count() > 0
        del node
        collector.after(EVERY)
        gc.collect()
        assert dead() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert dead() is None


def test_cycles_of_the_setup_are_gone_at_the_start() -> None:
    node = cycle()
    with Collector():
        assert node() is None
