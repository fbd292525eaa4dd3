"""Prefetching: the same batches, errors where they belong, no thread left behind."""

import threading

import pytest

from llm_pretrain.data.prefetch import Prefetcher


def threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_gives_what_the_function_gives_in_any_order() -> None:
    with Prefetcher(lambda step: step * step) as ahead:
        steps = [0, 1, 2, 3, 10, 11, 4, 4, 5, 100, 0]
        assert [ahead.get(step) for step in steps] == [step * step for step in steps]
    assert threads() == 0


def test_the_next_steps_are_ready_and_no_more() -> None:
    computed: list[int] = []
    done = threading.Event()

    def compute(step: int) -> int:
        computed.append(step)
        if step == 7:
            done.set()
        return step

    with Prefetcher(compute, depth=2) as ahead:
        ahead.get(5)
        assert done.wait(10)
        assert computed == [5, 6, 7]
        ahead.get(6)
    assert computed in ([5, 6, 7], [5, 6, 7, 8])


def test_errors_reach_whoever_asks_for_that_step() -> None:
    def compute(step: int) -> int:
        if step == 2:
            raise ValueError("step 2 is broken")
        return step

    with Prefetcher(compute) as ahead:
        assert [ahead.get(0), ahead.get(1)] == [0, 1]  # step 2 has failed unseen by now
        with pytest.raises(ValueError, match="step 2 is broken"):
            ahead.get(2)
        assert ahead.get(3) == 3
    assert threads() == 0


def test_closing_ends_the_thread_even_with_work_waiting() -> None:
    release = threading.Event()

    def slow(step: int) -> int:
        if step:
            release.wait(10)
        return step

    ahead = Prefetcher(slow, depth=50)
    assert ahead.get(0) == 0
    release.set()
    ahead.close()
    assert threads() == 0
