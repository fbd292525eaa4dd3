"""Bounds on the loss after T updates of SGD for any learning rates (Schaipp et al. 2025).

For x_{t+1} = x_t - eta_t g_t on a convex f, with D = ||x_1 - x*||, G_t^2 >= E||g_t||^2 and S_k the
sum of eta_k ... eta_T, Theorem 10 of Defazio et al. 2023 (arXiv 2310.07831), as used by Schaipp et
al. 2025 (arXiv 2501.18965), says E f(x_T) - f* <= Omega_T with

    Omega_T = D^2 / (2 S_1) + Q_1 / (2 S_1) + 1/2 sum_{k<T} eta_k Q_k / (S_{k+1} S_k),
    Q_k = sum_{t>=k} eta_t^2 G_t^2.

Because eta_k / (S_{k+1} S_k) = 1 / S_{k+1} - 1 / S_k, summation by parts leaves

    Omega_T = D^2 / (2 S_1) + 1/2 [ sum_{k<T} eta_k^2 G_k^2 / S_{k+1} + eta_T G_T^2 ],

which needs one kind of suffix sum and adds positive numbers only. That is what is evaluated here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_pretrain.errors import UserError

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | Array

_BLOCK = 128
"""Numbers that are added one after the other. Rounding errors grow with it and with the logarithm
of T to this base: three blocks for a million, at most 4e-14 of a suffix sum."""


@dataclass(frozen=True)
class Terms:
    """A bound as a function of the base rate gamma: distance / gamma + gamma noise."""

    distance: float
    """What is left of the way to the optimum; proportional to D^2."""
    noise: float
    """What the gradients add; proportional to G^2."""

    def at(self, rate: float) -> float:
        """The bound at the base rate `rate` > 0. Raises UserError for another."""
        _check_positive("lr", rate)
        return self.distance / rate + rate * self.noise

    @property
    def optimal_rate(self) -> float:
        """The base rate with the least bound, gamma* = sqrt(distance / noise)."""
        return math.sqrt(self.distance / self.noise)

    @property
    def optimal_bound(self) -> float:
        """The bound there, 2 sqrt(distance noise)."""
        return 2 * math.sqrt(self.distance * self.noise)


@dataclass(frozen=True)
class Curve:
    """The terms of a schedule cut after each of several updates, as arrays of one shape."""

    steps: npt.NDArray[np.int64]
    """Updates done, ascending."""
    distance: Array
    noise: Array

    def at(self, rate: float) -> Array:
        """The bound after each number of updates at the base rate `rate`. Raises UserError."""
        _check_positive("lr", rate)
        return self.distance / rate + rate * self.noise


def last_iterate(
    multipliers: Numbers, *, norms: float | Numbers = 1.0, distance: float = 1.0
) -> Terms:
    """The bound of the last iterate, Omega_T above, for eta_t = gamma multipliers[t - 1].

    `norms`: G_t, one for all or one for each update; `distance`: D. In O(T), with a relative error
    below 1e-13 for a million updates. Raises UserError for anything that is not positive.
    """
    steps, squares = _checked(multipliers, norms, distance)
    later = suffix_sums(steps)
    # Not steps^2 / later: the square of a tiny rate would be zero.
    noise = np.sum(steps[:-1] * (steps[:-1] / later[1:]) * squares[:-1]) + steps[-1] * squares[-1]
    return Terms(distance**2 / (2 * float(later[0])), float(noise) / 2)


def averaged(multipliers: Numbers, *, norms: float | Numbers = 1.0, distance: float = 1.0) -> Terms:
    """The bound (D^2 + sum eta_t^2 G_t^2) / (2 sum eta_t) of the average of the iterates, weighted
    by the rates, and of the best of them.

    The classical bound of the subgradient method, which Schaipp et al. 2025 set beside the other
    (their package's type "standard"). Arguments as for `last_iterate`.
    """
    steps, squares = _checked(multipliers, norms, distance)
    total = float(np.sum(steps))
    return Terms(distance**2 / (2 * total), float(np.sum(steps**2 * squares)) / (2 * total))


def curve(
    multipliers: Numbers,
    at: Sequence[int] | npt.NDArray[np.int64],
    *,
    norms: float | Numbers = 1.0,
    distance: float = 1.0,
) -> Curve:
    """`last_iterate` of the first t multipliers, for each t in `at` (ascending, 1 to T).

    In O(T len(at)) simple operations and O(T) memory, without cancellation. Raises UserError.
    """
    steps, squares = _checked(multipliers, norms, distance)
    weights = steps**2 * squares
    lengths = np.empty(len(at))
    noise = np.empty(len(at))
    for i, (t, later) in enumerate(cut_sums(steps, at)):
        lengths[i] = later[0]
        noise[i] = np.sum(weights[: t - 1] / later[1:]) + steps[t - 1] * squares[t - 1]
    return Curve(np.asarray(at, dtype=np.int64), distance**2 / (2 * lengths), noise / 2)


def moving(rates: Array) -> Array:
    """The rates of the updates that move anything: one at rate 0, as the first of a warmup from 0,
    changes neither the iterate nor the bound, and is refused by the functions here."""
    left: Array = rates[rates != 0]
    return left


def cut_sums(
    steps: Array, at: Sequence[int] | npt.NDArray[np.int64]
) -> Iterator[tuple[int, Array]]:
    """For each t in `at`, t and the suffix sums S_1 ... S_t of the first t steps.

    The array is overwritten by the next one. Raises UserError unless `at` ascends from 1 to T.
    """
    grid = np.asarray(at)
    if grid.ndim != 1 or not grid.size or np.any(np.diff(grid) <= 0):
        raise UserError("at: needs numbers of updates in ascending order, such as [100, 200]")
    if grid[0] < 1 or grid[-1] > len(steps):
        raise UserError(f"at: {grid[0]} to {grid[-1]}; this schedule has updates 1 to {len(steps)}")
    later, before = np.empty(len(steps)), 0
    for t in grid.tolist():
        own = suffix_sums(steps[before:t])
        later[:before] += own[0]
        later[before:t] = own
        before = t
        yield t, later[:t]


def suffix_sums(values: Array) -> Array:
    """values[k] + values[k + 1] + ... for each k, of positive values of shape (T,).

    Sums of blocks, then of the blocks' sums: no number passes through more than a few hundred
    additions, however many there are.
    """
    count = len(values)
    if count <= _BLOCK:
        return np.cumsum(values[::-1])[::-1]
    padded = np.zeros(-(-count // _BLOCK) * _BLOCK)
    padded[:count] = values
    inside = np.cumsum(padded.reshape(-1, _BLOCK)[:, ::-1], axis=1)[:, ::-1]  # (blocks, _BLOCK)
    inside[:-1] += suffix_sums(inside[:, 0])[1:, None]
    return inside.reshape(-1)[:count]


def _checked(multipliers: Numbers, norms: float | Numbers, distance: float) -> tuple[Array, Array]:
    """The rates and the squares of the gradient norms, both of shape (T,)."""
    steps = np.asarray(multipliers, dtype=np.float64)
    if steps.ndim != 1 or not steps.size:
        raise UserError(
            f"multipliers: an array of shape {steps.shape}; needs one number for each update"
        )
    _check_all("multipliers", steps, "each update needs a rate above 0")
    given = np.asarray(norms, dtype=np.float64)
    if given.shape not in ((), steps.shape):
        raise UserError(
            f"norms: an array of shape {given.shape}; needs one number, or {len(steps)}, as many "
            "as multipliers"
        )
    _check_all("norms", given, "gradient norms are above 0")
    _check_positive("distance", distance)
    return steps, np.broadcast_to(given**2, steps.shape)


def _check_all(name: str, values: Array, needs: str) -> None:
    good = (values > 0) & (values < np.inf)  # false for NaN
    if not np.all(good):
        first = int(np.argmin(good))
        where = f"{name}[{first}]" if values.ndim else name
        raise UserError(f"{where}: {values.reshape(-1)[first]:g}; {needs}, and finite")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name}: {value:g}; needs a positive number")
