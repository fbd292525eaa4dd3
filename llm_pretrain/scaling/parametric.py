"""Approach 3: L(N, D) = E + A N^-alpha + B D^-beta; and E + B D^-beta for a single size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.scaling.estimate import Estimate, noise
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.solve import EXPONENTS, FLOOR, Array, fit, fit_without, refit

_NEEDED = 7
"""Points for five parameters, so that there is something left to tell the noise from."""
_LENGTHS = 4
"""Lengths of one size for the three parameters of a law in tokens."""


@dataclass(frozen=True)
class Parametric:
    """L = E + A N^-alpha + B D^-beta, with 95% intervals."""

    E: Estimate
    A: Estimate
    B: Estimate
    alpha: Estimate
    beta: Estimate
    exponent: Estimate
    """a of N_opt ~ C^a."""
    deviation: float
    """Of the residuals of ln L, about the share of the loss, by the degrees of freedom."""
    worst: float
    """The largest residual, nats."""
    count: int
    """Points."""
    loose: tuple[str, ...]
    """Parameters that ended at the edge of the search: the data do not hold them."""

    def loss(self, params: float, tokens: float) -> float:
        """What the law says."""
        by_size = self.A.value * params**-self.alpha.value
        return float(self.E.value + by_size + self.B.value * tokens**-self.beta.value)


@dataclass(frozen=True)
class TokensOnly:
    """L = E + B D^-beta of one size, with 95% intervals."""

    size: str
    params: float
    E: Estimate
    B: Estimate
    beta: Estimate
    deviation: float
    count: int
    loose: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A parametric law as the solver knows it, with the draws of its parameters."""

    best: Array
    """ln A, ln B, ln E, alpha, beta."""
    drawn: Array
    """Shape (R, 5)."""
    residuals: Array
    """Of ln L, measured less fitted."""
    errors: Array
    """What was added to ln L in the draws, shape (R, n)."""


def lacking(points: Sequence[Point]) -> str:
    """What is missing for a law in size and tokens; empty when nothing is."""
    sizes, lengths = {p.params for p in points}, {p.tokens for p in points}
    places = {(p.params, p.tokens) for p in points}
    if len(sizes) < 3:
        return f"needs runs of 3 sizes at least, there {_are(len(sizes), 'size')}"
    if len(lengths) < 3:
        return f"needs 3 numbers of tokens at least, there {_are(len(lengths), 'number')}"
    if len(places) < _NEEDED:
        return (
            f"needs {_NEEDED} different pairs of size and tokens at least, there "
            f"{_are(len(places), 'pair')}"
        )
    return ""


def fits_without(points: Sequence[Point], best: Array, kept: Array) -> Array:
    """Parameters of fits to parts of the points; see `solve.fit_without`."""
    return fit_without(_variables(points), _losses(points), best, kept)


def predict(theta: Array, params: Array, tokens: Array) -> Array:
    """Losses, by parameters of shape (..., 5), broadcast against sizes and tokens."""
    log_a, log_b, log_e, alpha, beta = np.moveaxis(theta, -1, 0)
    by_size = np.exp(log_a - alpha * np.log(params))
    return np.asarray(np.exp(log_e) + by_size + np.exp(log_b - beta * np.log(tokens)))


def parametric(points: Sequence[Point], draws: int, seed: int) -> tuple[Parametric, Fitted]:
    """The law and what its intervals are made of; `points` lack nothing."""
    variables, losses = _variables(points), _losses(points)
    best = fit(variables, losses)
    fitted = np.log(predict(best, *variables))
    residuals = np.log(losses) - fitted
    errors = noise(residuals, 5, draws, seed)
    drawn = refit(variables, losses, fitted + errors, best)
    factors = [Estimate.of(np.exp(best[i]), np.exp(drawn[:, i])) for i in range(3)]
    exponents = [Estimate.of(best[i], drawn[:, i]) for i in (3, 4)]
    names = {"alpha": best[3], "beta": best[4]}
    law = Parametric(
        E=factors[2],
        A=factors[0],
        B=factors[1],
        alpha=exponents[0],
        beta=exponents[1],
        exponent=Estimate.of(
            best[4] / (best[3] + best[4]), drawn[:, 4] / (drawn[:, 3] + drawn[:, 4])
        ),
        deviation=float(np.sqrt(np.sum(residuals**2) / (len(points) - 5))),
        worst=float(np.abs(losses - np.exp(fitted)).max()),
        count=len(points),
        loose=_loose(names, np.exp(best[2]), losses),
    )
    return law, Fitted(best, drawn, residuals, errors)


def tokens_only(points: Sequence[Point], draws: int, seed: int) -> TokensOnly | str:
    """The law of one size, or why there is none."""
    name = points[0].size
    lengths = len({p.tokens for p in points})
    if lengths < _LENGTHS:
        needs = f"a law in tokens needs {_LENGTHS} lengths at least, there {_are(lengths, '')}"
        return f"{name}: {needs.rstrip()}"
    tokens, losses = _variables(points)[1:], _losses(points)
    best = fit(tokens, losses)
    fitted = np.log(predict_tokens_only(best, tokens[0]))
    residuals = np.log(losses) - fitted
    drawn = refit(tokens, losses, fitted + noise(residuals, 3, draws, seed), best)
    return TokensOnly(
        size=name,
        params=points[0].params,
        E=Estimate.of(np.exp(best[1]), np.exp(drawn[:, 1])),
        B=Estimate.of(np.exp(best[0]), np.exp(drawn[:, 0])),
        beta=Estimate.of(best[2], drawn[:, 2]),
        deviation=float(np.sqrt(np.sum(residuals**2) / (len(points) - 3))),
        count=len(points),
        loose=_loose({"beta": best[2]}, np.exp(best[1]), losses),
    )


def tokens_only_without(points: Sequence[Point], kept: Array) -> Array:
    """ln B, ln E and beta of fits to parts of the points of one size, shape (M, 3)."""
    tokens, losses = _variables(points)[1:], _losses(points)
    return fit_without(tokens, losses, fit(tokens, losses), kept)


def predict_tokens_only(theta: Array, tokens: Array) -> Array:
    """Losses by the law of one size, parameters of shape (..., 3)."""
    log_b, log_e, beta = np.moveaxis(theta, -1, 0)
    return np.asarray(np.exp(log_e) + np.exp(log_b - beta * np.log(tokens)))


def _variables(points: Sequence[Point]) -> Array:
    return np.array([[p.params for p in points], [p.tokens for p in points]], dtype=np.float64)


def _losses(points: Sequence[Point]) -> Array:
    return np.array([p.loss for p in points])


def _loose(exponents: dict[str, float], floor: float, losses: Array) -> tuple[str, ...]:
    low, high = EXPONENTS
    names = [n for n, value in exponents.items() if not low * 1.001 < value < high * 0.999]
    if not FLOOR * 1.001 < floor / losses.min() < 0.999:
        names.append("E")
    return tuple(names)


def _are(number: int, noun: str) -> str:
    return f"is 1 {noun}" if number == 1 else f"are {number} {noun}{'s' if noun else ''}"
