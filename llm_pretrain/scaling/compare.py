"""Laws of the same models trained in several ways: do they agree, what do they miss, the cost.

For the published runs: cooldowns from one trunk a size, cosines of the same lengths from scratch,
and averages along the trunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.scaling.estimate import Estimate
from llm_pretrain.scaling.laws import DRAWS, Laws, Progress, fit
from llm_pretrain.scaling.parametric import Fitted, parametric, predict
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.scaling.solve import Array

COOLDOWN, COSINE, AVERAGE = "cooldown", "cosine", "average"
SHARE = 0.2
"""Of a run, the cooldown."""
FAR = 3.0
"""How far beyond the results, in size and length each, the laws are compared."""
_NAMES = ("ln A", "ln B", "ln E", "alpha", "beta")


@dataclass(frozen=True)
class Difference:
    """Of two laws, cosine's less the cooldowns', with its 95% interval."""

    name: str
    value: Estimate
    agrees: bool
    """Whether zero lies in the interval."""


@dataclass(frozen=True)
class Held:
    """A result of the largest size, and what the law of the smaller ones says; nats."""

    source: str
    size: str
    tokens: float
    measured: float
    predicted: Estimate
    """With the interval of a measurement: the law's own and the noise."""
    inside: bool


@dataclass(frozen=True)
class Reuse:
    """FLOPs for the same results of one size: all cooldowns from one trunk, or all from scratch."""

    size: str
    results: int
    reused: float
    scratch: float

    @property
    def ratio(self) -> float:
        """Reused over from scratch."""
        return self.reused / self.scratch


@dataclass(frozen=True)
class Comparison:
    """What `laws compare` finds."""

    laws: dict[str, Laws]
    """By source: cooldown and cosine of the same sizes and lengths, average where there are any."""
    all_cosine: Laws | None
    """Of all cosines, where there are more than the cooldowns have lengths."""
    gaps: tuple[float, ...]
    """Cosine's loss less the cooldown's at each size and length, nats."""
    differences: tuple[Difference, ...]
    shared: float
    """Correlation of the residuals of the two laws at equal size and length. Near 1 the law's form
    misses the same models in both, which the intervals take for noise of each."""
    held: tuple[Held, ...]
    reuse: tuple[Reuse, ...]
    excluded: tuple[Excluded, ...]


def compare(
    points: Sequence[Point],
    excluded: Sequence[Excluded],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Laws by source over the same sizes and lengths. Raises UserError without enough of both."""
    own = {s: [p for p in points if p.source == s] for s in (COOLDOWN, COSINE, AVERAGE)}
    for source in (COOLDOWN, COSINE):
        if not own[source]:
            raise UserError(f"compare: no results whose source is {source}; it needs both")
    pairs = _paired(own[COOLDOWN], own[COSINE])
    sets = {COOLDOWN: [a for a, _ in pairs], COSINE: [b for _, b in pairs]}
    if own[AVERAGE]:
        sets[AVERAGE] = own[AVERAGE]
    differences, shared = _differences(sets[COOLDOWN], sets[COSINE], draws, seed)
    laws = {}
    for i, (source, found) in enumerate(sets.items()):
        laws[source] = fit(found, draws=draws, seed=seed + i)
        if progress:
            progress(i + 1, len(sets) + 1)
    more = len(own[COSINE]) > len(pairs)
    return Comparison(
        laws=laws,
        all_cosine=fit(own[COSINE], draws=draws, seed=seed) if more else None,
        gaps=tuple(b.loss - a.loss for a, b in pairs),
        differences=differences,
        shared=shared,
        held=tuple(h for found in sets.values() for h in _held(found, draws, seed)),
        reuse=tuple(_reuse(sets[COOLDOWN])),
        excluded=(*excluded, *(one for law in laws.values() for one in law.excluded)),
    )


def _paired(cooled: Sequence[Point], cosines: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Results of equal size and tokens, one of each source."""
    by_place = {(p.params, p.tokens): p for p in cosines}
    pairs = [(p, by_place[key]) for p in cooled if (key := (p.params, p.tokens)) in by_place]
    if not pairs:
        raise UserError("compare: no cooldown and cosine of equal size and tokens")
    return sorted(pairs, key=lambda pair: (pair[0].params, pair[0].tokens))


def _differences(
    ours: Sequence[Point], others: Sequence[Point], draws: int, seed: int
) -> tuple[tuple[Difference, ...], float]:
    """Parameter by parameter, and a loss farther out; the correlation of the residuals."""
    one = parametric(ours, draws, seed)[1]
    two = parametric(others, draws, seed + 1)[1]
    found = [_difference(name, two, one, i) for i, name in enumerate(_NAMES)]
    values = [_exponents(fitted) for fitted in (one, two)]
    gap = values[1] - values[0]
    found.append(_judged("a of N ~ C^a", Estimate.of(gap[0], gap[1:])))
    size, tokens = (FAR * max(getattr(p, name) for p in ours) for name in ("params", "tokens"))
    losses = [predict(_all(fitted), np.array(size), np.array(tokens)) for fitted in (one, two)]
    gap = losses[1] - losses[0]
    name = f"loss at {FAR:g} times the largest size and length"
    found.append(_judged(name, Estimate.of(gap[0], gap[1:])))
    return tuple(found), float(np.corrcoef(one.residuals, two.residuals)[0, 1])


def _difference(name: str, two: Fitted, one: Fitted, i: int) -> Difference:
    value = Estimate.of(two.best[i] - one.best[i], two.drawn[:, i] - one.drawn[:, i])
    return _judged(name, value)


def _judged(name: str, value: Estimate) -> Difference:
    return Difference(name, value, value.contains(0.0))


def _all(fitted: Fitted) -> Array:
    """The best parameters and those of the draws, shape (1 + R, 5)."""
    return np.concatenate([fitted.best[None], fitted.drawn])


def _exponents(fitted: Fitted) -> Array:
    theta = _all(fitted)
    return np.asarray(theta[:, 4] / (theta[:, 3] + theta[:, 4]))


def _held(points: Sequence[Point], draws: int, seed: int) -> list[Held]:
    """The largest size predicted from the others."""
    largest = max(p.params for p in points)
    rest = [p for p in points if p.params < largest]
    fitted = parametric(rest, draws, seed)[1]
    theta = _all(fitted)
    noise = np.random.default_rng(seed + 1).permutation(fitted.errors.ravel())[:draws]
    found = []
    for p in sorted((p for p in points if p.params == largest), key=lambda p: p.tokens):
        said = predict(theta, np.array(p.params), np.array(p.tokens))
        said[1:] *= np.exp(noise)
        value = Estimate.of(said[0], said[1:])
        found.append(Held(p.source, p.size, p.tokens, p.loss, value, value.contains(p.loss)))
    return found


def _reuse(points: Sequence[Point]) -> list[Reuse]:
    """A trunk goes to the last branch point, which is where the longest cooldown begins."""
    found = []
    for size in sorted({p.params for p in points}):
        own = [p for p in points if p.params == size]
        scratch = sum(p.flops for p in own)
        reused = (1 - SHARE) * max(p.flops for p in own) + SHARE * scratch
        found.append(Reuse(own[0].size, len(own), reused, scratch))
    return found
