"""All laws that a set of results allows, and the best size and length for a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.scaling.frontier import Frontier, Lines, envelope, isoflop
from llm_pretrain.scaling.interval import Estimate
from llm_pretrain.scaling.leave import LeftOut, leave_out, leave_out_lengths
from llm_pretrain.scaling.parametric import (
    Fitted,
    Parametric,
    TokensOnly,
    enough_lengths,
    lacking,
    parametric,
    predict,
    tokens_only,
)
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.scaling.sift import by_size, sift
from llm_pretrain.scaling.solve import Array

DRAWS = 400
Method = Literal["parametric", "envelope", "isoflop"]


@dataclass(frozen=True)
class Cost:
    """FLOPs = factor N^power D, fitted to the points' own; 6 N D has factor 6 and power 1."""

    factor: float
    power: float
    worst: float
    """The largest relative error at a point."""

    def tokens(self, flops: Array, params: Array) -> Array:
        """How many tokens a budget pays for."""
        return np.asarray(flops / (self.factor * params**self.power))


@dataclass(frozen=True)
class Optimum:
    """The size and length with the least loss for a budget, with 95% intervals."""

    flops: float
    method: Method
    params: Estimate
    tokens: Estimate
    loss: Estimate | None
    """Only the parametric law knows one."""
    beyond: float
    """The budget over that of the most expensive run; above 1 this extrapolates."""
    loose: tuple[str, ...] = ()
    """Parameters of the law behind it that the points do not hold."""


@dataclass(frozen=True)
class Laws:
    """What was fitted; a part is None where the points do not allow it, and `notes` say why."""

    points: tuple[Point, ...]
    """What the fits have seen."""
    excluded: tuple[Excluded, ...]
    parametric: Parametric | None
    tokens_only: tuple[TokensOnly, ...]
    """A law for each size with enough lengths, where there is none in size and tokens."""
    envelope: Frontier | None
    isoflop: Frontier | None
    cost: Cost
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    draws: int
    seed: int

    def optimum(self, flops: float, method: Method = "parametric") -> Optimum:
        """The best model for `flops`, counted as in the points.

        Raises UserError for a budget that is none and for a part that was not fitted.
        """
        if not (np.isfinite(flops) and flops > 0):
            raise UserError(f"budget: {flops:g} is no number of FLOPs; use 1e21, for example")
        part = getattr(self, method)
        if part is None:
            why = "; ".join(self.notes) or "it was not fitted"
            raise UserError(f"budget: no {method} law to answer with: {why}")
        beyond = float(flops / max(p.flops for p in self.points))
        found = fits(self.points, self.draws, self.seed)
        if method == "parametric":
            return _parametric_optimum(self, found.law[1], flops, beyond)
        lines = found.envelope if method == "envelope" else found.isoflop
        if isinstance(lines, str):
            raise UserError(f"budget: {lines}")
        sizes = _on_line(part, lines[1], flops)
        tokens = self.cost.tokens(np.array(flops), sizes)
        ends = [Estimate.of(value[0], value[1:]) for value in (sizes, tokens)]
        return Optimum(flops, method, ends[0], ends[1], None, beyond)

    def optima(self, flops: float) -> list[Optimum]:
        """By every method that was fitted."""
        methods: tuple[Method, ...] = ("parametric", "envelope", "isoflop")
        return [self.optimum(flops, m) for m in methods if getattr(self, m) is not None]


def fit(
    points: Sequence[Point],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Laws:
    """All laws that `points` allow, of one source, with intervals from `draws` draws.

    `seed`: of the draws. Raises UserError when there are too few points for any law.
    """
    kept, excluded = sift(points)
    return fit_sifted(kept, excluded, draws=draws, seed=seed)


def fit_sifted(
    kept: Sequence[Point],
    excluded: Sequence[Excluded],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Laws:
    """The same for points that have been sifted, and those that were left out."""
    missing = lacking(kept)
    if missing:
        return _in_tokens(kept, excluded, draws, seed)
    found = fits(tuple(kept), draws, seed)
    left_out, unleft = leave_out(kept, found.law[1].best)
    parts = (found.envelope, found.isoflop)
    frontiers = [None if isinstance(part, str) else part[0] for part in parts]
    notes = [part for part in parts if isinstance(part, str)]
    return Laws(
        points=tuple(kept),
        excluded=tuple(excluded),
        parametric=found.law[0],
        tokens_only=(),
        envelope=frontiers[0],
        isoflop=frontiers[1],
        cost=cost_of(kept),
        left_out=tuple(left_out),
        notes=(*notes, *unleft, *_cautions(kept, draws, found.law[0])),
        draws=draws,
        seed=seed,
    )


def fit_or_reason(points: Sequence[Point]) -> Laws | str:
    """The laws of `points`, or why there is none."""
    try:
        return fit(points)
    except UserError as error:
        return str(error)


def _in_tokens(kept: Sequence[Point], excluded: Sequence[Excluded], draws: int, seed: int) -> Laws:
    """Laws in tokens of single sizes, where more is not possible. Raises UserError."""
    single = [tokens_only(own, draws, seed) for own in by_size(kept)]
    notes = [f"no law in size and tokens: it {lacking(kept)}"]
    notes += [law for law in single if isinstance(law, str)]
    found = tuple(law for law in single if not isinstance(law, str))
    if not found:
        left = "".join(f"\n  left out: {one.run}: {one.reason}" for one in excluded)
        raise UserError(f"too few points for a law ({len(kept)} usable): {'; '.join(notes)}{left}")
    notes.append("no envelope and no IsoFLOP parabolas: as for a law in size and tokens")
    left_out = [leave_out_lengths(own) for own in by_size(kept) if enough_lengths(own)]
    return Laws(
        points=tuple(kept),
        excluded=tuple(excluded),
        parametric=None,
        tokens_only=found,
        envelope=None,
        isoflop=None,
        cost=cost_of(kept),
        left_out=tuple(one for own, _ in left_out for one in own),
        notes=(
            *notes,
            *(note for _, own in left_out for note in own),
            *_cautions(kept, draws, *found),
        ),
        draws=draws,
        seed=seed,
    )


def cost_of(points: Sequence[Point]) -> Cost:
    """FLOPs as a power of the size times the tokens, from the points' own; one size: power 1."""
    sizes = np.log([p.params for p in points])
    each = np.log([p.flops / p.tokens for p in points])
    power = 1.0
    if np.ptp(sizes) > 0:
        power = float(np.polyfit(sizes - sizes.mean(), each, 1)[0])
    factor = float(np.mean(each - power * sizes))
    worst = float(np.abs(np.expm1(factor + power * sizes - each)).max())
    return Cost(float(np.exp(factor)), power, worst)


def closed_form(theta: Array, cost: Cost, flops: float) -> tuple[Array, Array]:
    """The sizes and tokens with the least loss for a budget, by laws of shape (..., 5).

    With D = C / (k N^c) the loss has its minimum where alpha A N^-alpha = c beta B D^-beta.
    """
    log_a, log_b, _, alpha, beta = np.moveaxis(theta, -1, 0)
    ratio = np.log(alpha) + log_a - np.log(cost.power * beta) - log_b
    size = np.exp((ratio + beta * np.log(flops / cost.factor)) / (alpha + cost.power * beta))
    return size, cost.tokens(np.array(flops), size)


def _parametric_optimum(laws: Laws, fitted: Fitted, flops: float, beyond: float) -> Optimum:
    theta = np.concatenate([fitted.best[None], fitted.drawn])
    sizes, tokens = closed_form(theta, laws.cost, flops)
    losses = predict(theta, sizes, tokens)
    ends = [Estimate.of(value[0], value[1:]) for value in (sizes, tokens, losses)]
    loose = laws.parametric.loose if laws.parametric else ()
    return Optimum(flops, "parametric", ends[0], ends[1], ends[2], beyond, loose)


def _on_line(frontier: Frontier, lines: Lines, flops: float) -> Array:
    """Sizes at a budget, by the frontier and by every draw, shape (1 + R,)."""
    # A draw in which the best size does not grow has an infinite exponent: any size is possible.
    sound = np.isfinite(lines).all(axis=1)
    logs = np.full(len(lines), np.inf)
    logs[sound] = lines[sound] @ np.array([1.0, np.log(flops)])
    with np.errstate(over="ignore"):
        return np.concatenate([[frontier.params(flops)], np.exp(logs)])


@dataclass(frozen=True, eq=False)
class Fits:
    """What is costly, with its draws."""

    law: tuple[Parametric, Fitted]
    envelope: tuple[Frontier, Lines] | str
    isoflop: tuple[Frontier, Lines] | str


@lru_cache(maxsize=16)
def fits(points: tuple[Point, ...], draws: int, seed: int) -> Fits:
    """A budget asked later needs the draws again, which are too many to keep with the laws."""
    law = parametric(points, draws, seed)
    errors = law[1].errors
    return Fits(law, envelope(points, errors), isoflop(points, errors))


def _cautions(points: Sequence[Point], draws: int, *fitted: Parametric | TokensOnly) -> list[str]:
    """What a reader must know of the fits."""
    said = []
    sources = sorted({p.source for p in points})
    if len(sources) > 1:
        said.append(f"one law for results of different sources: {', '.join(sources)}")
    unsettled = sum(law.unsettled for law in fitted)
    if unsettled:
        said.append(f"the fit to {unsettled} of {draws * len(fitted)} draws had not come to rest")
    return said
