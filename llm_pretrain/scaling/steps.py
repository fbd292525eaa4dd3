"""One damped Newton step of `solve`, for many fits at once, between bounds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_FARTHEST = 2.0
"""Of a step in the logarithm of a slope; a reach grows fourfold or falls to 0.3 of it at most."""
_TINY = 1e-9
"""Of curvatures scaled to one: keeps directions that nothing holds from becoming infinite."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The Huber sum around the coordinates of each row, to second order."""

    gradient: Array
    """Shape (S, P)."""
    curvature: Array
    """Exact where it is defined, shape (S, P, P); it may have negative directions."""
    scale: Array
    """Of weighted least squares, which is never below the Huber sum, shape (S, P, P): what is
    measured in it does not depend on the units of the coordinates."""


def quadratic(x: Array, at: Array, target: Array, counted: Array, delta: float) -> Quadratic:
    """Of sum of counted * huber(ln L - target), with L = E + sum of s p exp(-x / p).

    `x`: shape (T, n); `at`: (E, ln s, p), shape (S, 2T + 1); the others: shape (S, n).
    """
    terms = len(x)
    reach = at[:, terms + 1 :, None]
    faded = x / reach
    parts = np.exp(at[:, 1 : terms + 1, None] - faded) * reach
    losses = at[:, :1] + parts.sum(axis=1)
    error = np.log(losses) - target
    weights = counted / np.maximum(np.abs(error) / delta, 1)
    score = weights * error
    shares = parts / losses[:, None]
    by_reach = shares * (1 + faded) / reach
    rows = np.concatenate([1 / losses[:, None], shares, by_reach], axis=1)  # (S, P, n)
    columns = rows.transpose(0, 2, 1)
    near = counted * (np.abs(error) <= delta)
    curvature = (rows * (near - score)[:, None]) @ columns
    # The second derivatives of L itself, which are zero but for these.
    slope, far = 1 + np.arange(terms), terms + 1 + np.arange(terms)
    crossed = (score[:, None] * by_reach).sum(axis=-1)
    curvature[:, slope, slope] += (score[:, None] * shares).sum(axis=-1)
    curvature[:, slope, far] += crossed
    curvature[:, far, slope] += crossed
    curvature[:, far, far] += (score[:, None] * shares * (faded / reach) ** 2).sum(axis=-1)
    gradient = (rows @ score[:, :, None])[:, :, 0]
    return Quadratic(gradient, curvature, (rows * weights[:, None]) @ columns)


def step(around: Quadratic, at: Array, damping: Array, lower: Array, upper: Array) -> Array:
    """Where damped steps lead, not beyond a bound; a coordinate at one may stay there."""
    stuck = (at <= lower) & (around.gradient > 0) | (at >= upper) & (around.gradient < 0)
    found = _solved(around, stuck, damping)
    for _ in range(at.shape[1]):
        out = (at <= lower) & (found < 0) | (at >= upper) & (found > 0)
        rows = np.flatnonzero(out.any(axis=1))
        if not len(rows):
            break
        stuck |= out
        own = Quadratic(around.gradient[rows], around.curvature[rows], around.scale[rows])
        found[rows] = _solved(own, stuck[rows], damping[rows])
    return _cut(at, found, lower, upper)


def _solved(around: Quadratic, stuck: npt.NDArray[np.bool_], damping: Array) -> Array:
    """Steps with what is stuck held fixed.

    In the units of `scale` the curvature's size in each of its own directions is taken, so that a
    step goes down where it is negative, and the damping is added.
    """
    index = np.arange(stuck.shape[1])
    free = ~(stuck[:, :, None] | stuck[:, None, :])
    gradient = np.where(stuck, 0.0, around.gradient)
    scale = around.scale * free
    scale[:, index, index] += stuck + 1e-300
    unit = 1 / np.sqrt(scale[:, index, index])
    both = unit[:, :, None] * unit[:, None, :]
    scale = scale * both
    scale[:, index, index] += _TINY
    inverse = np.linalg.inv(np.linalg.cholesky(scale))
    turned = inverse.transpose(0, 2, 1)
    sizes, directions = np.linalg.eigh(inverse @ (around.curvature * free * both) @ turned)
    along = directions.transpose(0, 2, 1) @ (inverse @ (gradient * unit)[:, :, None])
    along /= (np.abs(sizes) + damping[:, None])[:, :, None]
    return np.asarray(-(turned @ (directions @ along))[:, :, 0] * unit)


def _cut(at: Array, found: Array, lower: Array, upper: Array) -> Array:
    """Steps as far as the first bound, along a straight line: cutting one coordinate alone would
    leave the valley."""
    terms = (at.shape[1] - 1) // 2
    room = np.where(found > 0, upper - at, at - lower)
    farthest = np.full_like(at, np.inf)
    farthest[:, 1 : terms + 1] = _FARTHEST
    farthest[:, terms + 1 :] = at[:, terms + 1 :] * np.where(found[:, terms + 1 :] > 0, 3.0, 0.7)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_bound = np.where(found == 0, np.inf, room / np.abs(found))
        longest = np.where(found == 0, np.inf, farthest / np.abs(found)).min(axis=1)
    first = to_bound.argmin(axis=1)
    rows = np.arange(len(at))
    nearest = to_bound[rows, first]
    share = np.minimum(1.0, np.minimum(nearest, longest))
    tried = np.clip(at + share[:, None] * found, lower, upper)
    met = np.flatnonzero(share == nearest)
    ends = np.where(found[met, first[met]] > 0, upper[first[met]], lower[first[met]])
    tried[met, first[met]] = ends
    return np.asarray(tried)
