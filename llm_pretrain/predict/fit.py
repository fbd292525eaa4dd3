"""Fit of a law to observations: the most probable parameters, and how sure predictions are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import least_squares

from llm_pretrain.predict.discrepancy import DEVIATION, Discrepancy, places
from llm_pretrain.predict.history import Array, Case
from llm_pretrain.predict.law import Law
from llm_pretrain.predict.observe import Observation, lowest
from llm_pretrain.predict.prior import Prior

_STEP = 1e-4
"""Of the finite differences; parameters are logarithms or of order 1."""
_ABSURD = 1e3
"""Nats."""
_LARGEST = 0.1
"""Nats; a larger error of the law than this is not doubled again."""
_WIDENINGS = 3
"""How often the prior's deviations may be doubled, for a model unlike those it was pooled from."""
_UNLIKELY = float(np.log(10))
"""Logarithm of how much less probable a doubling of either is before anything is seen. Without it
a curve alone, which is smooth, would rather be all error, or of an extreme model."""
_NEGLIGIBLE = 0.01
"""Probability below which one of these is left out."""


@dataclass(frozen=True)
class Problem:
    """What is fitted: the law, what was seen, what was known."""

    law: Law
    observations: tuple[Observation, ...]
    prior: Prior
    decay: float
    """Weight decay of the optimizer."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Mean and deviation of how much lower losses of the kind "curve" are measured than final ones;
    zeros when both are of the same sample."""
    discrepancy: Discrepancy = field(default_factory=Discrepancy)

    @property
    def cases(self) -> list[Case]:
        """Where the losses were measured."""
        return [o.case for o in self.observations]


@dataclass(frozen=True)
class Fit:
    """The mode of the posterior, with what predictions need."""

    problem: Problem
    values: Array
    """Parameters of the law and, last, the offset of curves: shape (P + 1,)."""
    covariance: Array
    """Of the parameters, linearised at the mode: shape (P + 1, P + 1)."""
    residuals: Array
    """Measured less fitted losses, without the discrepancy, nats: shape (N,)."""
    jacobian: Array
    """Of the fitted losses: shape (N, P + 1)."""
    noise: Array
    """Covariance of the residuals, with that of the discrepancy: shape (N, N)."""
    surprise: float
    """Minus the logarithm of the probability of what was seen, up to a constant."""

    def predict(self, cases: Sequence[Case]) -> tuple[Array, Array]:
        """Expected final losses of `cases` and their standard deviations, both of shape (M,).

        The deviation is that of the mean: the noise of the run itself comes on top.
        """
        law, gap = self.problem.law, self.problem.discrepancy
        ready = law.prepare(cases, self.problem.decay)
        count = len(law.names)

        def losses(values: Array) -> Array:
            return law.losses(values[:count], ready)

        here = places(cases)
        near = gap.covariance(here, places(self.problem.cases))  # (M, N)
        weights = cho_solve(cho_factor(self.noise, lower=True), near.T).T
        mean = losses(self.values) + weights @ self.residuals
        slope = _jacobian(losses, self.values) - weights @ self.jacobian
        spread = np.einsum("ij,jk,ik->i", slope, self.covariance, slope)
        spread += gap.deviation**2 - np.sum(weights * near, axis=1)
        return mean, np.sqrt(np.maximum(spread, 0))


@dataclass(frozen=True)
class Posterior:
    """Fits with priors of several widths, each as probable as it makes what was seen."""

    parts: tuple[tuple[float, Fit], ...]
    """Probabilities, which add up to 1, and fits; the most probable first."""

    @property
    def best(self) -> Fit:
        """The most probable fit."""
        return self.parts[0][1]

    def predict(self, cases: Sequence[Case]) -> tuple[Array, Array]:
        """As `Fit.predict`, with the mean and the deviation of the mixture."""
        found = [(weight, *part.predict(cases)) for weight, part in self.parts]
        mean = np.sum([weight * own for weight, own, _ in found], axis=0)
        squares = [weight * (dev**2 + (own - mean) ** 2) for weight, own, dev in found]
        return mean, np.sqrt(np.sum(squares, axis=0))


def infer(problem: Problem) -> Posterior:
    """Fit with the prior as it is and with wider ones, weighed by the evidence.

    A model like those that the prior was pooled from is best explained by the prior as it is, and
    profits from it; one of another kind by a wider one. In less than a second.
    """
    found: list[Fit] = []
    surprises = []
    gap = problem.discrepancy
    for n in reversed(range(_WIDENINGS + 1)):
        # A narrower prior leaves the law no smaller an error: the search goes on from there.
        wider = replace(problem, prior=problem.prior.times(2.0**n), discrepancy=gap)
        found.append(fit(wider))
        surprises.append(found[-1].surprise + n * _UNLIKELY)
        gap = found[-1].problem.discrepancy
    weights = np.exp(min(surprises) - np.array(surprises))
    kept = weights > _NEGLIGIBLE * weights.sum()
    total = float(weights[kept].sum())
    parts = [
        (float(w) / total, part) for w, part, keep in zip(weights, found, kept, strict=True) if keep
    ]
    return Posterior(tuple(sorted(parts, key=lambda part: -part[0])))


def fit(problem: Problem, start: Array | None = None) -> Fit:
    """The most probable parameters, given the observations and the prior.

    Where a larger error of the law than the usual one makes the observations more probable, it is
    doubled until it no longer does, and predictions become as uncertain.
    """
    found = _solve(problem, start)
    while found.problem.discrepancy.deviation < _LARGEST:
        gap = Discrepancy(found.problem.discrepancy.deviation * 2)
        other = _solve(replace(problem, discrepancy=gap), found.values)
        if other.surprise >= found.surprise:
            break
        found = other
    return found


def _solve(problem: Problem, start: Array | None) -> Fit:
    """The fit with a given discrepancy."""
    law, count = problem.law, len(problem.law.names)
    ready = law.prepare(problem.cases, problem.decay)
    seen = problem.observations
    is_curve, measured = np.array([(o.kind == "curve", o.loss) for o in seen], np.float64).T

    def losses(values: Array) -> Array:
        # A trial step of the solver may go where the law overflows: it must only be a bad step.
        with np.errstate(over="ignore", invalid="ignore"):
            found = law.losses(values[:count], ready) - values[count] * is_curve
        return np.where(np.abs(found) < _ABSURD, found, _ABSURD)

    here = places(problem.cases)
    noise = problem.discrepancy.covariance(here, here)
    noise += np.diag([o.deviation**2 for o in seen])
    low: Array = np.linalg.cholesky(noise).astype(np.float64)
    mean, prior_low = _prior(problem)

    def weighed(values: Array) -> Array:
        data = solve_triangular(low, measured - losses(values), lower=True)
        return np.append(data, solve_triangular(prior_low, values - mean, lower=True))

    scale = np.minimum(np.sqrt(np.sum(prior_low**2, axis=1)), 1)
    best: Any = least_squares(
        weighed, mean if start is None else start, x_scale=scale, max_nfev=60, ftol=1e-6, xtol=1e-6
    )
    precision = best.jac.T @ best.jac
    surprise = best.cost + _determinants(low, prior_low, precision)
    surprise += _UNLIKELY * np.log2(problem.discrepancy.deviation / DEVIATION)
    return Fit(
        problem=problem,
        values=best.x,
        covariance=np.linalg.inv(precision),
        residuals=measured - losses(best.x),
        jacobian=_jacobian(losses, best.x),
        noise=noise,
        surprise=float(surprise),
    )


def _determinants(noise: Array, prior: Array, precision: Array) -> float:
    """Their part in the evidence by Laplace's approximation: half the logarithms of those of the
    noise, of the prior (both as Cholesky factors), and of the posterior's inverse covariance."""
    logs = np.log(np.concatenate([np.diag(noise), np.diag(prior)]))
    return float(np.sum(logs) + np.linalg.slogdet(precision)[1] / 2)


def _prior(problem: Problem) -> tuple[Array, Array]:
    """Mean and Cholesky factor of the covariance of the parameters and the offset."""
    size = len(problem.law.names)
    middle, deviation = problem.offset
    mean = np.append(problem.prior.at(lowest(problem.observations)), middle)
    low = np.zeros((size + 1, size + 1))
    low[:size, :size] = np.linalg.cholesky(problem.prior.covariance)
    low[size, size] = max(deviation, 1e-9)
    return mean, low


def _jacobian(losses: Callable[[Array], Array], values: Array) -> Array:
    """Central differences, shape (N, P + 1)."""
    steps = np.eye(len(values)) * _STEP
    columns = [(losses(values + s) - losses(values - s)) / (2 * _STEP) for s in steps]
    return np.stack(columns, axis=1)
