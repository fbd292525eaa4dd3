"""The learning rates of a run, cut into stretches so that a law costs the same for any length."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llm_pretrain.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float64]]

_FROM_START, _EVEN, _FROM_END = 40, 160, 90
"""Edges of stretches at distances that grow from the start, even ones, and ones that shrink to a
single update before the end, where the last rates weigh most."""
_JUMPS, _SUDDEN = 8, 0.05
"""Edges at the largest changes of the rate from one update to the next, of this share of the peak
or more: a stretch with one rate on average is a poor account of two."""
STRETCHES = _FROM_START + _EVEN + _FROM_END + _JUMPS - 1
"""Stretches of every cut history; some may be empty."""
_LAST = 50
"""The warmth of a history is taken over its last 1 / 50."""
_TINY = 1e-30
"""Stands for a rate of zero, whose logarithm the laws take."""


@dataclass(frozen=True, eq=False)
class History:
    """The learning rate of every update from the first."""

    rates: Array
    """float64 of shape (T,), none negative."""
    _sums: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the rates. Raises UserError naming the first that cannot be one."""
        rates = np.asarray(self.rates, dtype=np.float64)
        if rates.ndim != 1 or not rates.size:
            raise UserError(f"rates: an array of shape {rates.shape}; needs one rate per update")
        good = (rates >= 0) & (rates < np.inf)  # false for NaN
        if not np.all(good):
            first = int(np.argmin(good))
            raise UserError(f"rates[{first}]: {rates[first]:g}; a learning rate is 0 or more")
        if not np.any(rates > 0):
            raise UserError("rates: all are 0; a run needs an update that moves the weights")
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "_sums", np.concatenate([[0.0], np.cumsum(rates)]))

    @property
    def total(self) -> int:
        """Number of updates."""
        return len(self.rates)

    @cached_property
    def warm(self) -> int:
        """Updates until the peak is reached first: where a warmup ends."""
        return int(np.argmax(self.rates))

    @cached_property
    def jumps(self) -> Any:
        """The first updates at suddenly different rates, at most eight: int64, ascending."""
        changes = np.abs(np.diff(self.rates))
        largest = np.argsort(changes)[-_JUMPS:]
        return np.sort(largest[changes[largest] > _SUDDEN * self.rates.max()] + 1)

    def peak(self, step: int) -> float:
        """The largest rate of the first `step` updates."""
        return float(self.rates[: max(step, 1)].max())

    def warmth(self, step: int) -> float:
        """Mean rate of the last 2 % of the first `step` updates, as a share of their peak: 1 on a
        trunk, near 0 after a cooldown."""
        return float(self.rates[step - max(1, step // _LAST) : step].mean()) / self.peak(step)

    def check(self, step: int) -> None:
        """Raise UserError unless `step` updates, 1 to all, are in it."""
        if not 1 <= step <= self.total:
            raise UserError(f"step: {step}; this history has updates 1 to {self.total}")

    def stretches(self, step: int) -> tuple[Array, Array]:
        """Lengths in updates and mean rates of consecutive stretches of the first `step` updates.

        Two arrays of shape (STRETCHES,), oldest first; an empty stretch has length 0. Raises
        UserError for a step outside of 1 to `total`.
        """
        self.check(step)
        edges = _edges(step, self.jumps)
        lengths = np.diff(edges).astype(np.float64)
        sums = np.diff(self._sums[edges])
        return lengths, np.maximum(sums / np.maximum(lengths, 1), _TINY)


def _edges(step: int, jumps: Any) -> Any:
    parts = [
        np.pad(np.minimum(jumps, step), (0, _JUMPS - len(jumps))),
        np.geomspace(1, step, _FROM_START),
        np.linspace(0, step, _EVEN),
        step - np.geomspace(1, step, _FROM_END),
    ]
    return np.sort(np.rint(np.concatenate(parts)).astype(np.int64))


@dataclass(frozen=True)
class Case:
    """A history and how many of its updates were done: what a loss is predicted for."""

    history: History
    step: int

    def __post_init__(self) -> None:
        """Raise UserError for a step that the history does not have."""
        self.history.check(self.step)


@dataclass(frozen=True)
class Stretches:
    """The stretches of several cases: what laws that sum over updates are computed from."""

    lengths: Array
    """Updates, shape (N, STRETCHES)."""
    rates: Array
    """Mean rate in each, the same shape."""

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Stretches":
        """Cut the histories of `cases`."""
        cut = [case.history.stretches(case.step) for case in cases]
        return cls(np.stack([c[0] for c in cut]), np.stack([c[1] for c in cut]))


def remaining(values: Array) -> Array:
    """Sums of each stretch and those after it, along the last axis: shape as `values`."""
    sums: Array = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]
    return sums
