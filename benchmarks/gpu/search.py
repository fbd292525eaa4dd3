"""The largest micro-batch that fits: where to begin, and doubling until memory runs out."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from llm_pretrain.config.compose import compose
from llm_pretrain.estimate.plan import estimate

T = TypeVar("T")
MOST = 64
"""Sequences; beyond it nothing gets faster."""
_FILLED = 0.95
"""Of the device's memory, which an estimate may fill to be tried first."""
_HOPELESS = 1.1
"""Times the device's memory: what needs more by a measurement of half of it is not tried."""


class OutOfTimeError(Exception):
    """An attempt that could not be begun any more."""


def largest(
    attempt: Callable[[int], T | None],
    start: int,
    most: int = MOST,
    hopeless: Callable[[int, T], bool] = lambda _size, _found: False,
) -> tuple[int, T] | None:
    """The largest size of start x 2^n that fits, with what its attempt gave; None: not even 1 does.

    Args:
        attempt: called with a size; None when memory ran out.
        start: tried first. When it fits it is doubled, else halved.
        most: the largest size to try.
        hopeless: whether the next size need not be tried, judged by what half of it gave.

    Raises OutOfTimeError, which `attempt` raises, unless something fitted before.
    """
    size, found = start, attempt(start)
    if found is None:
        while found is None and size > 1:
            size //= 2
            found = attempt(size)
        return None if found is None else (size, found)
    while 2 * size <= most and not hopeless(2 * size, found):
        try:
            more = attempt(2 * size)
        except OutOfTimeError:
            break
        if more is None:
            break
        size, found = 2 * size, more
    return size, found


def likely(overrides: Sequence[str], capacity: int, most: int = MOST) -> int:
    """The largest power of two that should fit into `capacity` bytes by `llm-pretrain estimate`."""
    one, two = (_held(overrides, size) for size in (1, 2))
    if two <= one:
        return most
    fitting = 1 + (_FILLED * capacity - one) / (two - one)
    return 1 if fitting < 1 else min(most, 2 ** math.floor(math.log2(fitting)))


def too_large(size: int, half: int, state: int, capacity: int) -> bool:
    """Whether `size` sequences cannot fit, when half as many took `half` bytes.

    `state`: bytes that do not depend on the size. All else is taken to grow with it.
    """
    return size > 1 and state + 2 * (half - state) > _HOPELESS * capacity


def _held(overrides: Sequence[str], size: int) -> int:
    batch = [f"data.micro_batch={size}", f"data.global_batch={size}"]
    config = compose([*overrides, *batch])
    return sum(estimate(config).memory[config.engine.recompute].held.values())
