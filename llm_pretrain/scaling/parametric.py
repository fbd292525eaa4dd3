"""Approach 3: L(N, D) = E + A N^-alpha + B D^-beta; and E + B D^-beta for a single size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.scaling.interval import Estimate, noise, opened
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.solve import Array, Signs, Solved, fit, fit_without, refit

PARAMETERS = 5
IN_TOKENS = 3
"""Parameters of a law in tokens only."""
_NEEDED = 7
"""Points for five parameters, so that there is something left to tell the noise from."""
LENGTHS = 4
"""Of one size, for the three parameters of a law in tokens."""


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
    worst: "Worst"
    count: int
    """Points."""
    loose: tuple[str, ...]
    """Parameters that ended at the edge of the search: the data do not hold them."""
    unsettled: int
    """Of the draws, those whose fit had not come to rest."""

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
    worst: "Worst"
    count: int
    loose: tuple[str, ...]
    unsettled: int


@dataclass(frozen=True)
class Worst:
    """The run that is farthest from the law, by the logarithm of its loss."""

    run: str
    error: float
    """Measured less fitted, nats."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A parametric law as the solver knows it, with the draws of its parameters."""

    best: Array
    """ln A, ln B, ln E, alpha, beta."""
    drawn: Array
    """Shape (R, 5)."""
    edge: Signs
    """Where a draw's parameter ended at a bound of the search; see `solve.Problem.edges`."""
    residuals: Array
    """Of ln L, measured less fitted."""
    errors: Array
    """What was added to ln L in the draws, shape (R, n)."""

    def open(self) -> Array:
        """`drawn`, infinite where the search ended at a bound."""
        return opened(self.drawn, self.edge)

    def exponents(self) -> Array:
        """a of N ~ C^a in the draws, which rises with beta and falls with alpha; as `open`."""
        alpha, beta = self.drawn[:, 3], self.drawn[:, 4]
        beyond = np.where(self.edge[:, 3] != 0, -self.edge[:, 3], self.edge[:, 4])
        return opened(beta / (alpha + beta), beyond)


def lacking(points: Sequence[Point]) -> str:
    """What is missing for a law in size and tokens; empty when nothing is."""
    sizes, lengths = {p.params for p in points}, {p.tokens for p in points}
    places = {(p.params, p.tokens) for p in points}
    if len(sizes) < 3:
        return f"needs runs of 3 sizes at least, there {_are(len(sizes), 'size')}"
    if len(lengths) < 3:
        return (
            "needs 3 numbers of tokens at least to determine B and beta, there "
            f"{_are(len(lengths), 'number')}"
        )
    if len(places) < _NEEDED:
        return (
            f"needs {_NEEDED} different pairs of size and tokens at least, there "
            f"{_are(len(places), 'pair')}"
        )
    return ""


def fits_without(points: Sequence[Point], best: Array, kept: Array) -> Array:
    """Parameters of fits to parts of the points; see `solve.fit_without`."""
    return fit_without(_variables(points), _losses(points), best, kept).theta


def predict(theta: Array, params: Array, tokens: Array) -> Array:
    """Losses, by parameters of shape (..., 5), broadcast against sizes and tokens."""
    log_a, log_b, log_e, alpha, beta = np.moveaxis(theta, -1, 0)
    by_size = np.exp(log_a - alpha * np.log(params))
    return np.asarray(np.exp(log_e) + by_size + np.exp(log_b - beta * np.log(tokens)))


def residuals(points: Sequence[Point]) -> Array:
    """Of ln L, measured less what a robust fit to all says, which has 5 parameters."""
    best = fit(_variables(points), _losses(points)).theta[0]
    return np.asarray(np.log(_losses(points) / predict(best, *_variables(points))))


def parametric(points: Sequence[Point], draws: int, seed: int) -> tuple[Parametric, Fitted]:
    """The law and what its intervals are made of; `points` lack nothing."""
    variables, losses = _variables(points), _losses(points)
    solved = fit(variables, losses)
    best = solved.theta[0]
    fitted = np.log(predict(best, *variables))
    left = np.log(losses) - fitted
    errors = noise(left, PARAMETERS, draws, seed)
    again = refit(variables, losses, fitted + errors, best)
    found = _estimates(best, again)
    known = Fitted(best, again.theta, again.edge, left, errors)
    law = Parametric(
        E=found[2],
        A=found[0],
        B=found[1],
        alpha=found[3],
        beta=found[4],
        exponent=Estimate.of(best[4] / (best[3] + best[4]), known.exponents()),
        deviation=float(np.sqrt(np.sum(left**2) / (len(points) - PARAMETERS))),
        worst=_worst(points, left),
        count=len(points),
        loose=_loose(solved, ("A", "B", "E", "alpha", "beta")),
        unsettled=int(np.sum(~again.settled)),
    )
    return law, known


def enough_lengths(points: Sequence[Point]) -> bool:
    """Whether the runs of one size are of enough lengths for a law in tokens."""
    return len({p.tokens for p in points}) >= LENGTHS


def tokens_only(points: Sequence[Point], draws: int, seed: int) -> TokensOnly | str:
    """The law of one size, or why there is none."""
    name = points[0].size
    if not enough_lengths(points):
        lengths = len({p.tokens for p in points})
        needs = f"a law in tokens needs {LENGTHS} lengths at least, there {_are(lengths, '')}"
        return f"{name}: {needs.rstrip()}"
    tokens, losses = _variables(points)[1:], _losses(points)
    solved = fit(tokens, losses)
    best = solved.theta[0]
    fitted = np.log(predict_tokens_only(best, tokens[0]))
    left = np.log(losses) - fitted
    again = refit(tokens, losses, fitted + noise(left, IN_TOKENS, draws, seed), best)
    found = _estimates(best, again)
    return TokensOnly(
        size=name,
        params=points[0].params,
        E=found[1],
        B=found[0],
        beta=found[2],
        deviation=float(np.sqrt(np.sum(left**2) / (len(points) - IN_TOKENS))),
        worst=_worst(points, left),
        count=len(points),
        loose=_loose(solved, ("B", "E", "beta")),
        unsettled=int(np.sum(~again.settled)),
    )


def residuals_of_one_size(points: Sequence[Point]) -> Array:
    """As `residuals`, by the law in tokens, which has 3 parameters."""
    tokens, losses = _variables(points)[1:], _losses(points)
    best = fit(tokens, losses).theta[0]
    return np.asarray(np.log(losses / predict_tokens_only(best, tokens[0])))


def tokens_only_without(points: Sequence[Point], kept: Array) -> Array:
    """ln B, ln E and beta of fits to parts of the points of one size, shape (M, 3)."""
    tokens, losses = _variables(points)[1:], _losses(points)
    return fit_without(tokens, losses, fit(tokens, losses).theta[0], kept).theta


def predict_tokens_only(theta: Array, tokens: Array) -> Array:
    """Losses by the law of one size, parameters of shape (..., 3)."""
    log_b, log_e, beta = np.moveaxis(theta, -1, 0)
    return np.asarray(np.exp(log_e) + np.exp(log_b - beta * np.log(tokens)))


def _variables(points: Sequence[Point]) -> Array:
    return np.array([[p.params for p in points], [p.tokens for p in points]], dtype=np.float64)


def _losses(points: Sequence[Point]) -> Array:
    return np.array([p.loss for p in points])


def _estimates(best: Array, again: Solved) -> list[Estimate]:
    """Of factors, E and exponents, in the order of the solver; of the first not the logarithms."""
    factors = (len(best) + 1) // 2
    found = []
    for i, value in enumerate(best):
        drawn, edge = again.theta[:, i], again.edge[:, i]
        of = np.exp if i < factors else np.asarray
        found.append(Estimate.of(float(of(value)), of(drawn), edge))
    return found


def _worst(points: Sequence[Point], left: Array) -> Worst:
    i = int(np.argmax(np.abs(left)))
    return Worst(points[i].run, float(points[i].loss * -np.expm1(-left[i])))


def _loose(solved: Solved, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, edge in zip(names, solved.edge[0], strict=True) if edge)


def _are(number: int, noun: str) -> str:
    return f"is 1 {noun}" if number == 1 else f"are {number} {noun}{'s' if noun else ''}"
