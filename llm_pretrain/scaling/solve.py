"""Robust fits of sums of power laws to logarithms of losses, many at a time.

L = E + sum over t of exp(c_t - g_t x_t), for the logarithms x_t of size and tokens. What these
runs know well is the level and the slope at their centre; how much of the level is E, and how fast
the slopes fade, is a long curved valley in (c, E, g). The search goes along other coordinates,
(E, ln s_t, p_t) with p = 1 / g and s the slope at the centre, in which the valley is straight:
L = E + sum of s_t p_t exp(-x_t / p_t). A search along the valley's bends stops too early, and the
intervals of E and A come out too narrow.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_pretrain.scaling import steps

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Signs = npt.NDArray[np.int_]
DELTA = 1e-3
"""Of the Huber loss on ln L, as Hoffmann et al. (2022) have it: beyond it errors count linearly."""
EXPONENTS = 0.01, 3.0
"""What exponents are sought between."""
FLOOR = 1e-3
"""The lowest E, as a share of the lowest loss."""
_LIMIT = 2000
"""Of steps. Some 40 are needed on average."""
_TRIAL = 12
"""Steps from every start, after which the search goes on from the lowest ones."""
_KEPT = 2
_TOLERANCE = 1e-9
"""Of the Huber sum, relative: the sum is not averaged over the points, and the search goes on until
it stands still (Besiroglu et al. 2024 found that an early stop distorted the published fit)."""
_STILL = 4
"""So many steps in a row that gain less than the tolerance are the end."""
_NOTHING = 1e-24
"""A Huber sum that is zero but for rounding."""
_GRID = np.geomspace(0.05, 1.5, 18)
_STARTS = 24
_FAR = 0.07, 0.8
"""Exponents of the starts that draws and parts have beside the best fit."""


@dataclass(frozen=True)
class Problem:
    """The variables, and the coordinates (E, ln s_1..ln s_T, p_1..p_T) of the search."""

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
        terms, low, high = len(logs), float(losses.min()), float(losses.max())
        slopes = np.log(low) - 20.0, np.log(high) + 4.0
        lower = [FLOOR * low] + [slopes[0]] * terms + [1 / EXPONENTS[1]] * terms
        upper = [high] + [slopes[1]] * terms + [1 / EXPONENTS[0]] * terms
        return cls(logs - centre[:, None], centre, np.array(lower), np.array(upper))

    def parts(self, at: Array) -> tuple[Array, Array]:
        """The terms at (S, 2T + 1) coordinates, and x / p of each; both of shape (S, T, n)."""
        terms = len(self.x)
        reach = at[:, terms + 1 :, None]
        faded = self.x / reach
        return np.exp(at[:, 1 : terms + 1, None] - faded) * reach, faded

    def predict(self, at: Array) -> Array:
        """Logarithms of losses, shape (S, n)."""
        return np.asarray(np.log(at[:, :1] + self.parts(at)[0].sum(axis=1)))

    def inside(self, at: Array) -> Array:
        """Coordinates within the bounds; those at one but for rounding are at it."""
        room = 1e-9 * (self.upper - self.lower)
        at = np.where(at < self.lower + room, self.lower, at)
        return np.where(at > self.upper - room, self.upper, at)

    def coordinates(self, theta: Array) -> Array:
        """Of parameters (c, ln E, g), shape (S, 2T + 1), that go with variables not centred."""
        terms = len(self.x)
        exponents = theta[:, terms + 1 :]
        slopes = theta[:, :terms] - exponents * self.centre + np.log(exponents)
        level = np.exp(theta[:, terms : terms + 1])
        return self.inside(np.concatenate([level, slopes, 1 / exponents], axis=1))

    def parameters(self, at: Array) -> Array:
        """(c, ln E, g) for variables that are not centred."""
        terms = len(self.x)
        exponents = 1 / at[:, terms + 1 :]
        factors = at[:, 1 : terms + 1] - np.log(exponents) + exponents * self.centre
        return np.concatenate([factors, np.log(at[:, :1]), exponents], axis=1)

    def edges(self, at: Array) -> Signs:
        """For each of (c, ln E, g) -1 or 1 where it is at the lower or upper bound, else 0.

        A factor whose exponent is at a bound is as little held as that. Where the exponent is at
        the lower one, the term is next to constant and may be exchanged for E: that is 2, for an
        unknown direction.
        """
        terms = len(self.x)
        signs = (at >= self.upper).astype(int) - (at <= self.lower)
        exponents = -signs[:, terms + 1 :]
        slopes = signs[:, 1 : terms + 1]
        factors = np.where(slopes != 0, slopes, np.where(exponents < 0, 2, exponents))
        return np.concatenate([factors, signs[:, :1], exponents], axis=1)


@dataclass(frozen=True, eq=False)
class Solved:
    """Parameters that were found, a row a fit."""

    theta: Array
    """(c_1..c_T, ln E, g_1..g_T), shape (S, 2T + 1)."""
    edge: Signs
    """0 where the search did not end at a bound, else as of `Problem.edges`; shape of `theta`."""
    settled: Flags
    """Whether the search came to rest, shape (S,)."""


def huber(residuals: Array, counted: Array | float = 1.0) -> Array:
    """The sum of Huber losses over the last axis; `counted`: how often each counts."""
    size = np.abs(residuals)
    each = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))
    return np.asarray((counted * each).sum(axis=-1))


def fit(variables: Array, losses: Array) -> Solved:
    """The best of many starts, one row."""
    problem = Problem.of(variables, losses)
    starts = _starts(problem, losses)
    order = np.argsort(huber(problem.predict(starts) - np.log(losses)), kind="stable")
    every = np.ones((1, len(losses)))
    return _best(problem, np.log(losses)[None], every, starts[order[:_STARTS]])


def fit_without(variables: Array, losses: Array, best: Array, kept: Array) -> Solved:
    """Fits to parts of the points: `kept` is 1 or 0, shape (M, n). `best`: of the fit to all."""
    problem = Problem.of(variables, losses)
    target = np.broadcast_to(np.log(losses), kept.shape)
    return _best(problem, target, kept, _few(problem, losses, best))


def refit(variables: Array, losses: Array, drawn: Array, best: Array) -> Solved:
    """Fits to other logarithms of losses at the same points, shape (R, n).

    `best`: parameters of the fit to `losses`.
    """
    problem = Problem.of(variables, losses)
    return _best(problem, drawn, np.ones_like(drawn), _few(problem, losses, best))


def _best(problem: Problem, target: Array, counted: Array, starts: Array) -> Solved:
    """To every row of `target` and `counted`, from the starts that get lowest in a few steps."""
    every = np.tile(starts, (len(target), 1, 1))
    tried, _ = _lowest(problem, target, counted, every, limit=_TRIAL, kept=_KEPT)
    found, settled = _lowest(problem, target, counted, tried, limit=_LIMIT, kept=1)
    at = found[:, 0]
    return Solved(problem.parameters(at), problem.edges(at), settled[:, 0])


def _lowest(
    problem: Problem, target: Array, counted: Array, starts: Array, *, limit: int, kept: int
) -> tuple[Array, Flags]:
    """Where steps from `starts`, shape (R, K, P), lead: the `kept` lowest of each row."""
    rows, count, _ = starts.shape
    targets, weights = np.repeat(target, count, axis=0), np.repeat(counted, count, axis=0)
    found, settled = descend(problem, targets, starts.reshape(rows * count, -1), weights, limit)
    sums = huber(problem.predict(found) - targets, weights).reshape(rows, count)
    order = np.argsort(sums, axis=1, kind="stable")[:, :kept]
    lowest = np.take_along_axis(found.reshape(starts.shape), order[:, :, None], axis=1)
    return lowest, np.take_along_axis(settled.reshape(rows, count), order, axis=1)


def descend(
    problem: Problem,
    target: Array,
    at: Array,
    counted: Array | None = None,
    limit: int | None = None,
) -> tuple[Array, Flags]:
    """Damped Newton steps on the Huber sum, for every row on its own, within the bounds.

    `target`: shape (S, n); `at`: coordinates to begin from, shape (S, 2T + 1); `counted`: shape
    (S, n), how often each point counts, once by default; `limit`: of steps. Returns coordinates,
    and which rows came to rest.
    """
    counted = np.ones_like(target) if counted is None else counted
    at = problem.inside(at)
    damping, still = np.full(len(at), 1e-3), np.zeros(len(at), dtype=int)
    sums = huber(problem.predict(at) - target, counted)
    live = np.flatnonzero(sums > _NOTHING)
    for _ in range(_LIMIT if limit is None else limit):
        if not len(live):
            break
        own, goal, weight = at[live], target[live], counted[live]
        level = steps.quadratic(problem.x, own, goal, weight, DELTA)
        tried = steps.step(level, own, damping[live], problem.lower, problem.upper)
        new = huber(problem.predict(tried) - goal, weight)
        better = new < sums[live]
        # A step that fails says nothing before it is damped.
        ended = np.where(better, sums[live] - new <= _TOLERANCE * sums[live], damping[live] >= 1)
        at[live[better]], sums[live[better]] = tried[better], new[better]
        damping[live] = np.clip(np.where(better, damping[live] / 8, damping[live] * 6), 1e-6, 1e8)
        still[live] = np.where(ended, still[live] + 1, 0)
        live = live[(still[live] < _STILL) & (sums[live] > _NOTHING)]
    settled = np.ones(len(at), dtype=bool)
    settled[live] = False
    return at, settled


def _few(problem: Problem, losses: Array, best: Array) -> Array:
    """The best fit to all, and for small and for large exponents the rest by least squares."""
    terms = len(problem.x)
    far = _linear(problem, losses, np.array([[value] * terms for value in _FAR]))
    return np.concatenate([problem.coordinates(best[None]), far])


def _starts(problem: Problem, losses: Array) -> Array:
    """For all exponents on a grid, the other parameters by least squares."""
    terms = len(problem.x)
    grid = np.stack(np.meshgrid(*[_GRID] * terms, indexing="ij"), axis=-1).reshape(-1, terms)
    return _linear(problem, losses, grid)


def _linear(problem: Problem, losses: Array, exponents: Array) -> Array:
    """Coordinates with these exponents, shape (S, T), by least squares of relative errors."""
    terms = len(problem.x)
    columns = [np.exp(-exponents[:, t, None] * problem.x[t]) for t in range(terms)]
    design = np.stack([*columns, np.ones_like(columns[0])], axis=-1) / losses[:, None]
    normal = design.transpose(0, 2, 1) @ design + 1e-12 * np.eye(terms + 1)
    solved = np.linalg.solve(normal, design.sum(axis=1)[:, :, None])[:, :, 0]
    positive = np.maximum(solved, 1e-2 * losses.min())
    slopes = np.log(positive[:, :terms] * exponents)
    return problem.inside(np.concatenate([positive[:, terms:], slopes, 1 / exponents], axis=1))
