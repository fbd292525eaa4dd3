"""Laws of the same models trained in several ways: do they agree, what do they miss, the cost.

For the published runs: cooldowns from one trunk a size, cosines of the same lengths from scratch,
and averages along the trunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.scaling.interval import Estimate
from llm_pretrain.scaling.laws import DRAWS, Laws, fit_sifted, fits
from llm_pretrain.scaling.parametric import Fitted, lacking, parametric, predict
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.scaling.sift import sift
from llm_pretrain.scaling.solve import Array

COOLDOWN, COSINE, AVERAGE = "cooldown", "cosine", "average"
SHARE = 0.2
"""Of a published run, the cooldown."""
FAR = 3.0
"""How far beyond the results, in size and length each, the laws are compared."""
_EXACT = 1e-9
"""Residuals below it are rounding."""
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
    shared: float | None
    """Correlation of the residuals of the two laws at equal size and length. Near 1 the law's form
    misses the same models in both, which the intervals take for noise of each. None where a law
    leaves none."""
    held: tuple[Held, ...]
    """Empty for a source whose smaller sizes make no law."""
    reuse: tuple[Reuse, ...]
    """Empty where it is unknown how long the cooldowns were."""
    excluded: tuple[Excluded, ...]
    """Every result that is not in the laws side by side, with the reason."""


def compare(
    points: Sequence[Point],
    excluded: Sequence[Excluded],
    *,
    share: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Laws by source over the same sizes and lengths.

    `share`: of every run, the cooldown, where that is known. Raises UserError without enough
    results of cooldowns and cosines at equal size and tokens.
    """
    own, out = _by_source(points)
    pairs, unpaired = _paired(own[COOLDOWN], own[COSINE])
    sets = {COOLDOWN: [a for a, _ in pairs], COSINE: [b for _, b in pairs]}
    left = [*excluded, *(one for found in out.values() for one in found), *unpaired]
    missing = lacking(sets[COOLDOWN])
    if missing:
        named = "".join(f"\n  left out: {one.run}: {one.reason}" for one in left)
        raise UserError(
            f"compare: a law of cooldowns and cosines at equal size and tokens {missing}{named}"
        )
    if own[AVERAGE]:
        missing = lacking(own[AVERAGE])
        if missing:
            left += [Excluded(p.run, f"a law of averages {missing}") for p in own[AVERAGE]]
        else:
            sets[AVERAGE] = own[AVERAGE]
    laws = {}
    for i, (source, found) in enumerate(sets.items()):
        laws[source] = fit_sifted(found, out[source], draws=draws, seed=seed + i)
    differences, shared = _differences(sets[COOLDOWN], sets[COSINE], draws, seed)
    every = own[COSINE] if len(own[COSINE]) > len(pairs) else None
    return Comparison(
        laws=laws,
        all_cosine=fit_sifted(every, out[COSINE], draws=draws, seed=seed) if every else None,
        gaps=tuple(b.loss - a.loss for a, b in pairs),
        differences=differences,
        shared=shared,
        held=tuple(h for found in sets.values() for h in _held(found, draws, seed)),
        reuse=tuple(_reuse(sets[COOLDOWN], share)) if share else (),
        excluded=tuple(left),
    )


def smaller(points: Sequence[Point]) -> list[Point]:
    """All but those of the largest size."""
    largest = max(p.params for p in points)
    return [p for p in points if p.params < largest]


def _by_source(
    points: Sequence[Point],
) -> tuple[dict[str, list[Point]], dict[str, list[Excluded]]]:
    """The sound results of each source that is compared, and by source what was left out."""
    own, out = {}, {}
    for source in (COOLDOWN, COSINE, AVERAGE):
        own[source], out[source] = sift([p for p in points if p.source == source])
        if source != AVERAGE and not own[source]:
            named = "".join(f"\n  left out: {one.run}: {one.reason}" for one in out[source])
            raise UserError(f"compare: no results whose source is {source}; it needs both{named}")
    for p in points:
        if p.source not in own:
            reason = f"its source is {p.source}: {COOLDOWN}, {COSINE} and {AVERAGE} are compared"
            out.setdefault(p.source, []).append(Excluded(p.run, reason))
    return own, out


def _paired(
    cooled: Sequence[Point], cosines: Sequence[Point]
) -> tuple[list[tuple[Point, Point]], list[Excluded]]:
    """Results of equal size and tokens, one of each source, and those that have no partner."""
    places: dict[tuple[float, float], tuple[list[Point], list[Point]]] = {}
    for i, points in enumerate((cooled, cosines)):
        for p in points:
            places.setdefault((p.params, p.tokens), ([], []))[i].append(p)
    pairs: list[tuple[Point, Point]] = []
    alone: list[Excluded] = []
    for _, (ours, others) in sorted(places.items()):
        both = min(len(ours), len(others))
        pairs += zip(ours[:both], others[:both], strict=True)
        reason = f"no {COSINE} of equal size and tokens"
        alone += [Excluded(p.run, reason) for p in ours[both:]]
        reason = f"no {COOLDOWN} of equal size and tokens: in the law of all cosines only"
        alone += [Excluded(p.run, reason) for p in others[both:]]
    return pairs, alone


def _differences(
    ours: Sequence[Point], others: Sequence[Point], draws: int, seed: int
) -> tuple[tuple[Difference, ...], float | None]:
    """Parameter by parameter, and a loss farther out; the correlation of the residuals."""
    one = fits(tuple(ours), draws, seed).law[1]
    two = fits(tuple(others), draws, seed + 1).law[1]
    found = [_difference(name, two, one, i) for i, name in enumerate(_NAMES)]
    # Open less open is unknown: NaN, which counts at both ends.
    with np.errstate(invalid="ignore"):
        apart = two.exponents() - one.exponents()
    best = _exponent(two) - _exponent(one)
    found.append(_judged("a of N ~ C^a", Estimate.of(best, apart)))
    size, tokens = (FAR * max(getattr(p, name) for p in ours) for name in ("params", "tokens"))
    losses = [predict(_all(fitted), np.array(size), np.array(tokens)) for fitted in (one, two)]
    gap = losses[1] - losses[0]
    name = f"loss at {FAR:g} times the largest size and length"
    found.append(_judged(name, Estimate.of(gap[0], gap[1:])))
    shared = None
    if min(one.residuals.std(), two.residuals.std()) > _EXACT:
        shared = float(np.corrcoef(one.residuals, two.residuals)[0, 1])
    return tuple(found), shared


def _difference(name: str, two: Fitted, one: Fitted, i: int) -> Difference:
    with np.errstate(invalid="ignore"):  # as above
        drawn = two.open()[:, i] - one.open()[:, i]
    return _judged(name, Estimate.of(two.best[i] - one.best[i], drawn))


def _judged(name: str, value: Estimate) -> Difference:
    return Difference(name, value, value.contains(0.0))


def _all(fitted: Fitted) -> Array:
    """The best parameters and those of the draws, shape (1 + R, 5)."""
    return np.concatenate([fitted.best[None], fitted.drawn])


def _exponent(fitted: Fitted) -> float:
    return float(fitted.best[4] / (fitted.best[3] + fitted.best[4]))


def _held(points: Sequence[Point], draws: int, seed: int) -> list[Held]:
    """The largest size predicted from the others, where they make a law."""
    rest = smaller(points)
    if lacking(rest):
        return []
    largest = max(p.params for p in points)
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


def _reuse(points: Sequence[Point], share: float) -> list[Reuse]:
    """A trunk goes to the last branch point, which is where the longest cooldown begins."""
    found = []
    for size in sorted({p.params for p in points}):
        own = [p for p in points if p.params == size]
        scratch = sum(p.flops for p in own)
        reused = (1 - share) * max(p.flops for p in own) + share * scratch
        found.append(Reuse(own[0].size, len(own), reused, scratch))
    return found
