"""Which size is best at a budget, without a law of the loss: envelopes and IsoFLOP parabolas.

Approaches 1 and 2 of Hoffmann et al. (2022), from final losses of a few runs a size. Between its
own shortest and longest run a size's ln L is a polynomial in ln C; nothing is extrapolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llm_pretrain.scaling.interval import Estimate
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.solve import Array

_DEGREE = 3
_WINDOW = 5
"""Sizes around a minimum: farther ones say more of the tails than of its place."""
_SAME = 0.02
"""Budgets this close, relative, are one; and how far a size's curve reaches beyond its runs."""
_BUDGETS = 10
"""IsoFLOP budgets at most, when every run has its own."""
_NEWTON = 8


@dataclass(frozen=True)
class Place:
    """A point of the frontier: at this budget, this size."""

    flops: Estimate
    """Exact (an interval without width) for an IsoFLOP budget."""
    params: Estimate
    """Exact for the envelope."""
    sizes: tuple[str, ...]
    """That it lies between, or that the parabola went through."""


@dataclass(frozen=True)
class Frontier:
    """The best size as a power of the budget."""

    exponent: Estimate
    """a of N = k C^a."""
    log_factor: float
    """ln k."""
    places: tuple[Place, ...]

    def params(self, flops: float) -> float:
        """The best size at a budget."""
        return float(np.exp(self.log_factor + self.exponent.value * np.log(flops)))


Lines = Array
"""ln k and a of every draw, shape (R, 2)."""


@dataclass(frozen=True)
class _Curve:
    """ln L of one size over ln C: the coefficients' matrix, and for the data and each draw."""

    name: str
    log_params: float
    low: float
    high: float
    centre: float
    coefficients: Array
    """Shape (1 + R, degree + 1): of the measured losses first, highest power first."""

    def at(self, x: Array) -> Array:
        """ln L at ln C, shape (1 + R,)."""
        found = np.zeros(len(self.coefficients))
        for column in self.coefficients.T:
            found = found * (x - self.centre) + column
        return found

    def slope(self, x: Array) -> Array:
        """Derivative of `at` by ln C."""
        degree = self.coefficients.shape[1] - 1
        found = np.zeros(len(self.coefficients))
        for power, column in zip(range(degree, 0, -1), self.coefficients.T, strict=False):
            found = found * (x - self.centre) + power * column
        return found


def envelope(points: Sequence[Point], errors: Array) -> tuple[Frontier, Lines] | str:
    """Approach 1: where the lower envelope of all runs passes from a size to the next larger one.

    There the best size is taken to be the geometric mean of the two; unlike the size that is best
    at a budget, that has no rounding to the sizes that were trained. `errors`: of ln L in each
    draw, shape (R, n). A string says why there is none.
    """
    curves = _curves(points, errors)
    found = [(a, b, x) for a, b in pairwise(curves) if (x := _cross(a, b))]
    if len(found) < 2:
        return (
            f"no envelope: {len(found)} of {len(curves) - 1} neighbouring sizes have curves that "
            "cross at a budget between the shortest and the longest run of both, and two are needed"
        )
    middles = np.array([(a.log_params + b.log_params) / 2 for a, b, _ in found])
    budgets = np.stack([_meet(a, b, x) for a, b, x in found], axis=1)  # (1 + R, places)
    # Known sizes, measured budgets: the line is ln C over ln N, and turned round afterwards.
    offset, slope = _line(middles[None], budgets, _weights(budgets))
    with np.errstate(divide="ignore"):
        exponents = np.where(slope > 0, 1 / slope, np.inf)
    lines = np.stack([-offset * exponents, exponents], axis=1)
    places = tuple(
        Place(_exponential(budgets[:, i]), _exact(np.exp(middles[i])), (a.name, b.name))
        for i, (a, b, _) in enumerate(found)
    )
    return _frontier(lines, places)


def isoflop(points: Sequence[Point], errors: Array) -> tuple[Frontier, Lines] | str:
    """Approach 2: at equal budgets, the minimum of a parabola of ln L over ln N.

    Needs three sizes or more at a budget, with the lowest loss not at the smallest or largest.
    Arguments and result as of `envelope`.
    """
    curves = _curves(points, errors)
    slices = [(x, found) for x in _budgets(points, curves) if (found := _slice(curves, x))]
    if len(slices) < 2:
        return (
            f"no IsoFLOP parabolas: {len(slices)} budgets at which three sizes or more have been "
            "trained (between the shortest and the longest run of each) with the lowest loss "
            "inside, and two are needed; add sizes at equal FLOPs"
        )
    best = np.stack([_vertex(own, x) for x, own in slices], axis=1)  # (1 + R, budgets)
    budgets = np.array([x for x, _ in slices])
    lines = np.stack(_line(budgets[None], best, _weights(best)), axis=1)
    places = tuple(
        Place(_exact(np.exp(x)), _exponential(best[:, i]), tuple(c.name for c in own))
        for i, (x, own) in enumerate(slices)
    )
    return _frontier(lines, places)


def _frontier(lines: Lines, places: tuple[Place, ...]) -> tuple[Frontier, Lines] | str:
    if not np.isfinite(lines[0]).all() or lines[0, 1] <= 0:
        return "no frontier: the best size does not grow with the budget in these runs"
    exponent = Estimate.of(lines[0, 1], lines[1:, 1])
    return Frontier(exponent, float(lines[0, 0]), places), lines[1:]


def _curves(points: Sequence[Point], errors: Array) -> list[_Curve]:
    """One for each size with two lengths or more, smallest first."""
    flops = np.log([point.flops for point in points])
    losses = np.log([point.loss for point in points])
    params = np.array([point.params for point in points])
    every = np.concatenate([losses[None], losses + errors])
    curves = []
    for size in np.unique(params):
        own = np.flatnonzero(params == size)
        x = flops[own]
        lengths = len(np.unique(x))
        if lengths < 2:
            continue
        design = np.vander(x - x.mean(), min(lengths - 1, _DEGREE) + 1)
        coefficients = every[:, own] @ np.linalg.pinv(design).T
        name, ends = points[own[0]].size, (float(x.min()), float(x.max()))
        curves.append(_Curve(name, float(np.log(size)), *ends, float(x.mean()), coefficients))
    return curves


def _cross(smaller: _Curve, larger: _Curve) -> float | None:
    """The ln C from which the larger size is better, inside both ranges."""
    low, high = max(smaller.low, larger.low), min(smaller.high, larger.high)
    if low >= high:
        return None
    grid = np.linspace(low, high, 400)
    gap = [float((larger.at(x) - smaller.at(x))[0]) for x in grid]
    for i in range(len(grid) - 1):
        if gap[i] > 0 >= gap[i + 1]:
            return float(grid[i] + (grid[i + 1] - grid[i]) * gap[i] / (gap[i] - gap[i + 1]))
    return None


def _meet(smaller: _Curve, larger: _Curve, start: float) -> Array:
    """Where the curves cross in the measurement and in every draw, shape (1 + R,)."""
    x = np.full(len(smaller.coefficients), start)
    for _ in range(_NEWTON):
        gap = larger.at(x) - smaller.at(x)
        slope = np.minimum(larger.slope(x) - smaller.slope(x), -1e-6)
        x = x - np.clip(gap / slope, -0.5, 0.5)
    return x


def _budgets(points: Sequence[Point], curves: Sequence[_Curve]) -> list[float]:
    """ln C of the runs, those that are nearly equal once; evenly spaced ones if there are many."""
    merged: list[list[float]] = []
    for x in sorted(np.log(point.flops) for point in points):
        if merged and x - merged[-1][0] <= _SAME:
            merged[-1].append(x)
        else:
            merged.append([x])
    found = [float(np.mean(own)) for own in merged]
    found = [x for x in found if _slice(curves, x)]
    if len(found) > _BUDGETS:
        return [float(x) for x in np.linspace(found[0], found[-1], _BUDGETS)]
    return found


def _slice(curves: Sequence[_Curve], x: float) -> list[_Curve]:
    """The sizes around the lowest at a budget; empty where there is no minimum to be found."""
    there = [c for c in curves if c.low - _SAME <= x <= c.high + _SAME]
    if len(there) < 3:
        return []
    losses = [float(c.at(np.array(x))[0]) for c in there]
    lowest = int(np.argmin(losses))
    if lowest in (0, len(there) - 1):
        return []
    begin = min(max(lowest - _WINDOW // 2, 0), max(len(there) - _WINDOW, 0))
    return there[begin : begin + _WINDOW]


def _vertex(curves: Sequence[_Curve], x: float) -> Array:
    """ln N of the least loss, in the measurement and in every draw.

    A parabola through three or four sizes; five show that the two sides of the minimum differ, and
    a cubic term takes that out of its place.
    """
    sizes = np.array([c.log_params for c in curves])
    losses = np.stack([c.at(np.array(x)) for c in curves], axis=1)
    degree = 3 if len(curves) == _WINDOW else 2
    middle, reach = sizes.mean(), sizes[-1] - sizes[0]
    powers = losses @ np.linalg.pinv(np.vander(sizes - middle, degree + 1)).T
    cube = powers[:, 0] if degree == 3 else np.zeros(len(powers))
    square, linear = powers[:, -3], powers[:, -2]
    with np.errstate(divide="ignore", invalid="ignore"):
        below = square + np.sqrt(square**2 - 3 * cube * linear)
        vertex = np.where(below > 0, -linear / below, -np.sign(linear) * np.inf)
    return np.asarray(middle + np.clip(vertex, -reach, reach))


def _weights(values: Array) -> Array:
    """One over the variance in the draws of each column, from quantiles."""
    low, high = np.percentile(values[1:], [16, 84], axis=0)
    return np.asarray(1 / np.maximum((high - low) / 2, 1e-9) ** 2)


def _line(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Offsets and slopes of weighted lines through the columns, for every row."""
    share = weights / weights.sum()
    mean_x, mean_y = (x * share).sum(axis=1), (y * share).sum(axis=1)
    apart = x - mean_x[:, None]
    slope = (share * apart * (y - mean_y[:, None])).sum(axis=1) / (share * apart**2).sum(axis=1)
    return mean_y - slope * mean_x, slope


def _exponential(logs: Array) -> Estimate:
    return Estimate.of(float(np.exp(logs[0])), np.exp(logs[1:]))


def _exact(value: float) -> Estimate:
    return Estimate(float(value), float(value), float(value))
