"""Robust fits of sums of power laws to logarithms of losses, many at a time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DELTA = 1e-3
"""Of the Huber loss on ln L, as Hoffmann et al. (2022) have it: beyond it errors count linearly."""
EXPONENTS = 0.01, 3.0
"""What exponents are sought between."""
FLOOR = 1e-3
"""The lowest E, as a share of the lowest loss."""
_STEPS = 400
_TOLERANCE = 1e-12
"""Of the Huber sum, relative: the sum is not averaged over the points, and the search goes on until
it stands still (Besiroglu et al. 2024 found that an early stop distorted the published fit)."""
_GRID = np.geomspace(0.05, 1.5, 18)
_STARTS = 24
_FEW = 4


@dataclass(frozen=True)
class Problem:
    """ln L = ln(E + sum over t of exp(c_t - g_t x_t)), for terms t with known x_t.

    Parameters are (c_1..c_T, ln E, g_1..g_T). The x are centred here, which keeps c and g apart.
    """

    x: Array
    """Centred ln of the variables, shape (T, n)."""
    centre: Array
    """What was taken off, shape (T,)."""
    lower: Array
    upper: Array

    @classmethod
    def of(cls, variables: Array, losses: Array) -> "Problem":
        """From positive variables, shape (T, n), and losses, shape (n,)."""
        logs = np.log(variables)
        centre = logs.mean(axis=1)
        terms, top = len(logs), float(np.log(losses).max())
        low = float(np.log(losses).min())
        lower = [low - 16.0] * terms + [low + np.log(FLOOR)] + [EXPONENTS[0]] * terms
        upper = [top + 2.0] * terms + [top] + [EXPONENTS[1]] * terms
        return cls(logs - centre[:, None], centre, np.array(lower), np.array(upper))

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Logarithms of losses, shape (S, n), of S sets of parameters, and the terms' shares."""
        terms = len(self.x)
        parts = np.empty((len(theta), terms + 1, self.x.shape[1]))
        parts[:, :terms] = theta[:, :terms, None] - theta[:, terms + 1 :, None] * self.x
        parts[:, terms] = theta[:, terms, None]
        top = parts.max(axis=1, keepdims=True)
        shares = np.exp(parts - top)
        total = shares.sum(axis=1, keepdims=True)
        return (top + np.log(total))[:, 0], shares / total

    def slopes(self, shares: Array) -> Array:
        """Derivatives of the logarithms of losses by the parameters, shape (S, n, 2T + 1)."""
        by_exponent = -shares[:, :-1] * self.x
        return np.concatenate([shares, by_exponent], axis=1).transpose(0, 2, 1)

    def centred(self, theta: Array) -> Array:
        """Parameters, shape (2T + 1,), of `original` for the centred variables here."""
        terms = len(self.x)
        found = theta.copy()
        found[:terms] -= theta[terms + 1 :] * self.centre
        return found

    def original(self, theta: Array) -> Array:
        """Parameters for variables that are not centred."""
        terms = len(self.x)
        found = theta.copy()
        found[:, :terms] += theta[:, terms + 1 :] * self.centre
        return found


def huber(residuals: Array, counted: Array | float = 1.0) -> Array:
    """The sum of Huber losses over the last axis; `counted`: how often each counts."""
    size = np.abs(residuals)
    each = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))
    return np.asarray((counted * each).sum(axis=-1))


def fit(variables: Array, losses: Array) -> Array:
    """The best of many starts: parameters (c, ln E, g), shape (2T + 1,)."""
    problem, target = Problem.of(variables, losses), np.log(losses)
    starts = _starts(problem, losses, _STARTS)
    found = descend(problem, np.broadcast_to(target, (len(starts), len(target))), starts)
    sums = huber(problem.predict(found)[0] - target)
    return np.asarray(problem.original(found[[int(np.argmin(sums))]])[0])


def fit_without(variables: Array, losses: Array, best: Array, kept: Array) -> Array:
    """Fits to parts of the points: `kept` is 1 or 0, shape (M, n). Returns shape (M, 2T + 1).

    The fit to all points, `best`, and a few more starts are enough, as the parts are nearly all.
    """
    problem, target = Problem.of(variables, losses), np.log(losses)
    starts = np.concatenate([problem.centred(best)[None], _starts(problem, losses, _FEW)])
    parts = np.repeat(kept, len(starts), axis=0)
    targets = np.broadcast_to(target, parts.shape)
    found = descend(problem, targets, np.tile(starts, (len(kept), 1)), parts)
    sums = huber(problem.predict(found)[0] - target, parts).reshape(len(kept), len(starts))
    rows = np.arange(len(kept)) * len(starts) + sums.argmin(axis=1)
    return problem.original(found[rows])


def refit(variables: Array, losses: Array, drawn: Array, best: Array) -> Array:
    """Fits to other logarithms of losses at the same points, from the best fit to `losses`.

    `drawn`: shape (R, n). Returns parameters, shape (R, 2T + 1).
    """
    problem = Problem.of(variables, losses)
    start = np.tile(problem.centred(best), (len(drawn), 1))
    return problem.original(descend(problem, drawn, start))


def descend(problem: Problem, target: Array, theta: Array, counted: Array | None = None) -> Array:
    """Levenberg and Marquardt's steps on the Huber sum, for every row on its own.

    `target`: shape (S, n); `theta`: shape (S, 2T + 1), where to begin; `counted`: shape (S, n), how
    often each point counts, once by default.
    """
    counted = np.ones_like(target) if counted is None else counted
    theta = np.clip(theta, problem.lower, problem.upper)
    damping = np.full(len(theta), 1e-3)
    still = np.zeros(len(theta), dtype=int)
    live = np.arange(len(theta))
    fitted, shares = problem.predict(theta)
    sums = huber(fitted - target, counted)
    for _ in range(_STEPS):
        error = fitted[live] - target[live]
        weights = counted[live] / np.maximum(np.abs(error) / DELTA, 1)
        system = _system(problem, theta[live], error, weights, shares[live])
        step = _step(*system, damping[live])
        tried = np.clip(theta[live] + step, problem.lower, problem.upper)
        new_fitted, new_shares = problem.predict(tried)
        new_sums = huber(new_fitted - target[live], counted[live])
        better = new_sums < sums[live]
        gained = sums[live] - new_sums
        small = ~better | (gained <= _TOLERANCE * sums[live])
        moved = live[better]
        theta[moved], sums[moved] = tried[better], new_sums[better]
        fitted[moved], shares[moved] = new_fitted[better], new_shares[better]
        damping[live] = np.clip(np.where(better, damping[live] / 5, damping[live] * 4), 1e-12, 1e8)
        still[live] = np.where(small, still[live] + 1, 0)
        # A step that fails is tried again with more damping before it counts as the end.
        live = live[(still[live] < 8) & (sums[live] > 0)]
        if not len(live):
            break
    return theta


def _system(
    problem: Problem, theta: Array, error: Array, weights: Array, shares: Array
) -> tuple[Array, Array]:
    """Gradient and curvature; a parameter at its bound takes no part in a step beyond it."""
    slopes = problem.slopes(shares)
    weighted = (weights[:, :, None] * slopes).transpose(0, 2, 1)  # (S, 2T + 1, n)
    gradient = (weighted @ error[:, :, None])[:, :, 0]
    curvature = weighted @ slopes
    stuck = (theta <= problem.lower) & (gradient > 0)
    stuck |= (theta >= problem.upper) & (gradient < 0)
    curvature *= ~(stuck[:, :, None] | stuck[:, None, :])
    index = np.arange(theta.shape[1])
    curvature[:, index, index] += stuck
    return np.where(stuck, 0.0, gradient), curvature


def _step(gradient: Array, curvature: Array, damping: Array) -> Array:
    """The damped steps of all rows."""
    index = np.arange(gradient.shape[1])
    diagonal = curvature[:, index, index]
    least = 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    curvature[:, index, index] += damping[:, None] * diagonal + least
    return np.asarray(np.linalg.solve(curvature, -gradient[:, :, None])[:, :, 0])


def _starts(problem: Problem, losses: Array, count: int) -> Array:
    """For exponents on a grid, the other parameters by least squares; the best of these."""
    terms = len(problem.x)
    grid = np.stack(np.meshgrid(*[_GRID] * terms, indexing="ij"), axis=-1).reshape(-1, terms)
    columns = [np.exp(-grid[:, t, None] * problem.x[t]) for t in range(terms)]
    design = np.stack([*columns, np.ones_like(columns[0])], axis=-1) / losses[:, None]
    normal = design.transpose(0, 2, 1) @ design + 1e-12 * np.eye(terms + 1)
    solved = np.linalg.solve(normal, design.sum(axis=1)[:, :, None])[:, :, 0]
    positive = np.maximum(solved, 1e-2 * losses.min())
    theta = np.clip(np.concatenate([np.log(positive), grid], axis=1), problem.lower, problem.upper)
    sums = huber(problem.predict(theta)[0] - np.log(losses))
    return np.asarray(theta[np.argsort(sums, kind="stable")[:count]])
