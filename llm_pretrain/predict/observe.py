"""Measured losses as data of a fit: what was measured where, and how exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.predict.history import Array, Case, History

REPEAT = 0.0013
"""Standard deviation between repeated runs, nats: 16 pairs of the runs of Hägele et al. 2024 differ
by 0.0015 on average."""
_SETTLED = 0.08
"""The first share of a curve that is left out: there the loss falls in ways no law here knows."""
_WARMUPS = 6
"""Lengths of the warmup that are left out at least."""
_BINS = 16
"""A curve is averaged to at most this many points, even in the logarithm of the step: more would
say no more, as the law's own error is the same for neighbours."""


@dataclass(frozen=True)
class Observation:
    """The loss of a run after some of its updates."""

    case: Case
    loss: float
    """Nats per token."""
    kind: Literal["final", "curve"]
    """curve: a mean of validation losses along the way, which may be of a smaller sample."""
    deviation: float
    """Standard deviation of its own noise: not shared with others, gone in the long run."""


def final(history: History, step: int, loss: float, deviation: float = REPEAT) -> Observation:
    """A loss measured once, at the end of a run or on its way. Raises UserError for a bad one."""
    _check([loss])
    return Observation(Case(history, step), float(loss), "final", deviation)


def curve_of(
    history: History, steps: Sequence[int], losses: Sequence[float]
) -> tuple[Observation, ...]:
    """A validation curve as means over stretches of steps, without its beginning.

    `losses[i]` was measured after `steps[i]` updates. Empty where nothing is left. Raises UserError
    for losses that are no numbers, or steps that the history does not have.
    """
    if len(steps) != len(losses):
        raise UserError(f"curve: {len(steps)} steps but {len(losses)} losses; give one loss each")
    _check(losses)
    at, loss, places = _settled(history, steps, losses)
    noise = _scatter(at, loss, places)
    found = []
    for place in np.unique(places):
        own = places == place
        step = round(float(np.exp(np.log(at[own]).mean())))
        deviation = float(np.hypot(0.6 * REPEAT, noise / np.sqrt(own.sum())))
        found.append(Observation(Case(history, step), float(loss[own].mean()), "curve", deviation))
    return tuple(found)


def repeatability(history: History, steps: Sequence[int], losses: Sequence[float]) -> float:
    """Standard deviation to expect between repeated runs with this validation curve: that of its
    losses around its course, but no less than REPEAT."""
    return max(REPEAT, _scatter(*_settled(history, steps, losses)))


def _settled(
    history: History, steps: Sequence[int], losses: Sequence[float]
) -> tuple[Array, Array, Any]:
    """The part of a curve that is used, in order: steps, losses, and the bin of each."""
    order = np.argsort(steps)
    at = np.asarray(steps, dtype=np.float64)[order]
    loss = np.asarray(losses, dtype=np.float64)[order]
    kept = at >= max(1.0, _SETTLED * at.max(initial=0), _WARMUPS * history.warm)
    at, loss = at[kept], loss[kept]
    if not len(at):
        return at, loss, np.empty(0, dtype=np.int64)
    edges = np.geomspace(at[0], at[-1] * (1 + 1e-9), _BINS + 1)
    return at, loss, np.clip(np.searchsorted(edges, at, side="right") - 1, 0, _BINS - 1)


def _scatter(steps: Array, losses: Array, places: Any) -> float:
    """Standard deviation of the losses around a line through those of each bin.

    Where no bin has four losses it is the deviation between repeated runs.
    """
    squares, freedom = 0.0, 0
    for place in np.unique(places):
        own = places == place
        if own.sum() >= 4:
            x = np.log(steps[own])
            rest = losses[own] - np.polyval(np.polyfit(x, losses[own], 1), x)
            squares, freedom = squares + float(rest @ rest), freedom + int(own.sum()) - 2
    return float(np.sqrt(squares / freedom)) if freedom else REPEAT


def lowest(observations: Sequence[Observation]) -> float:
    """The least loss among them."""
    return min(o.loss for o in observations)


def _check(losses: Sequence[float]) -> None:
    for loss in losses:
        if not 0 < loss < np.inf:
            raise UserError(f"loss: {loss:g}; needs a number of nats above 0")
