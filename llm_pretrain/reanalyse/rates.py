"""The best peak rate against the length of the cooldown: from the runs, and by the theory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_pretrain.predict.observe import REPEAT
from llm_pretrain.reanalyse.comparisons import model
from llm_pretrain.reanalyse.load import PaperRun, multipliers
from llm_pretrain.theory.bound import Array, last_iterate, moving

NEAR = 4.0
"""Rates up to this factor from the one with the least loss are fitted. Over a wider range the form
that is fitted does not hold: over a factor of 20 or 30 it misses by several times the noise."""
_FEWEST = 3
"""Rates, as many as the numbers fitted."""
_DRAWS = 2000
_LEVEL = 0.8
_LOST = 0.05
"""Share of the draws without a least loss above which a rate counts as not determined."""


@dataclass(frozen=True)
class BestRate:
    """The best peak rate for one cooldown, and how it compares with that for the longest."""

    model: str
    total: int
    cooldown: int
    share: float
    """The cooldown as a share of the run."""
    losses: dict[str, float]
    """By peak rate."""
    fitted: list[float]
    """The rates in the fit."""
    rate: float
    """gamma_c = sqrt(A / B) of the fit loss = A / gamma + B gamma + C."""
    rate_range: tuple[float, float] | None
    """Its interval of 80 %; None where the noise leaves it open."""
    log_ratio: float
    """Logarithm of the best rate for the longest cooldown over this one."""
    log_ratio_range: tuple[float, float] | None
    theory: float
    """The same from the bound of the two schedules."""
    log_ratio_all: float | None
    """`log_ratio` from fits to all rates, None where these are not more."""
    scatter_all: float | None
    """How far the losses are from the fit to all rates: root mean square per degree of freedom."""


@dataclass(frozen=True)
class RateTransfer:
    """All of them, and how they compare with the theory over all lengths and horizons."""

    entries: list[BestRate]
    slope: float | None
    """Of the measured logarithms of the best rates against the theory's, with a free constant for
    each horizon: 1 where the theory is right. None without entries."""
    slope_range: tuple[float, float] | None
    """Interval of 80 %, from the noise of the losses alone."""
    mean_gap: float | None
    """Mean absolute difference of the log ratios from the theory's, without the longest."""


@dataclass(frozen=True)
class _Fitted:
    """The fits of one cooldown."""

    peaks: list[float]
    best: float
    draws: Array
    theory: float
    best_all: float | None
    scatter_all: float | None


_Grid = dict[int, dict[float, PaperRun]]
"""Runs by cooldown and peak rate."""


def best_rates(runs: Sequence[PaperRun], seed: int = 0) -> RateTransfer:
    """For every model and length at which linear cooldowns of several lengths were run at three
    rates or more: one entry a cooldown, from short to long.

    Uncertainty: the losses are drawn again with the deviation between repeated runs.
    """
    grids: dict[tuple[tuple[int, int], int], _Grid] = {}
    for run in runs:
        good = run.kind == "cooldown" and run.shape == "linear" and not run.diverged
        if good and run.typed and run.final is not None:
            grids.setdefault((run.size, run.total), {}).setdefault(run.cooldown, {})[run.peak] = run
    draw = np.random.default_rng(seed)
    entries, fits = [], []
    for (size, total), lengths in sorted(grids.items()):
        found = {c: _fit(own, draw) for c, own in sorted(lengths.items()) if len(own) >= _FEWEST}
        kept = {c: one for c, one in found.items() if one is not None}
        if len(kept) > 1:
            entries += [_entry(model(size), total, c, lengths[c], kept) for c in kept]
            fits.append(list(kept.values()))
    slope, slope_range = _slope(fits)
    gaps = [abs(e.log_ratio - e.theory) for e in entries if e.theory]
    return RateTransfer(entries, slope, slope_range, sum(gaps) / len(gaps) if gaps else None)


def fit_rate(rates: npt.ArrayLike, losses: npt.ArrayLike) -> tuple[Array, Array]:
    """Logarithm of the best rate, and the residuals, of loss = A / gamma + B gamma + C.

    `rates`: shape (N,); `losses`: shape (..., N), whose leading shape the results have. NaN where
    A or B is not positive, so that there is no least loss. Least squares.
    """
    gamma, loss = np.asarray(rates, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    unit = math.exp(np.log(gamma).mean())
    design = np.stack([unit / gamma, gamma / unit, np.ones_like(gamma)], axis=1)  # (N, 3)
    values = loss @ np.linalg.pinv(design).T  # (..., 3)
    a, b = values[..., 0], values[..., 1]
    ratio = np.where(a > 0, a, np.nan) / np.where(b > 0, b, np.nan)
    return math.log(unit) + np.log(ratio) / 2, loss - values @ design.T


def _fit(own: dict[float, PaperRun], draw: np.random.Generator) -> _Fitted | None:
    """The fits of one cooldown, or None where they give no best rate."""
    losses = {peak: run.final for peak, run in sorted(own.items()) if run.final is not None}
    least = min(losses, key=lambda peak: losses[peak])
    peaks = [peak for peak in losses if 1 / NEAR <= peak / least * (1 + 1e-9) <= NEAR * (1 + 2e-9)]
    if len(peaks) < _FEWEST:
        return None
    near = np.array([losses[peak] for peak in peaks])
    best = float(fit_rate(peaks, near)[0])
    noise = REPEAT * draw.standard_normal((_DRAWS, len(peaks)))
    best_all = scatter_all = None
    if len(losses) > max(_FEWEST, len(peaks)):
        everywhere, rest = fit_rate(list(losses), list(losses.values()))
        best_all = float(everywhere)
        scatter_all = math.sqrt(float(rest @ rest) / (len(losses) - _FEWEST))
    terms = last_iterate(moving(multipliers(next(iter(own.values())))))
    theory = math.log(terms.optimal_rate)
    drawn = fit_rate(peaks, near + noise)[0]
    found = _Fitted(peaks, best, drawn, theory, best_all, scatter_all)
    return found if math.isfinite(best) else None


def _entry(
    name: str, total: int, cooldown: int, own: dict[float, PaperRun], fits: dict[int, _Fitted]
) -> BestRate:
    one, last = fits[cooldown], fits[max(fits)]
    span = _interval(one.draws)
    ratio_all = None
    if last.best_all is not None and one.best_all is not None:
        ratio_all = last.best_all - one.best_all
    return BestRate(
        model=name,
        total=total,
        cooldown=cooldown,
        share=cooldown / total,
        losses={f"{peak:g}": run.final or math.nan for peak, run in sorted(own.items())},
        fitted=one.peaks,
        rate=math.exp(one.best),
        rate_range=span and (math.exp(span[0]), math.exp(span[1])),
        log_ratio=last.best - one.best,
        log_ratio_range=_interval(last.draws - one.draws),
        theory=last.theory - one.theory,
        log_ratio_all=ratio_all,
        scatter_all=one.scatter_all,
    )


def _slope(grids: Sequence[Sequence[_Fitted]]) -> tuple[float | None, tuple[float, float] | None]:
    """Slope of measured over predicted logarithms of the rates, and its interval."""
    if not grids:
        return None, None
    measured = np.concatenate([_centred(np.array([[f.best for f in own]])) for own in grids], 1)
    drawn = np.concatenate([_centred(np.stack([f.draws for f in own], axis=1)) for own in grids], 1)
    theory = np.concatenate([_centred(np.array([[f.theory for f in own]])) for own in grids], 1)
    length = float(np.sum(theory**2))
    # A draw without a least loss says nothing about its rate: it counts as unchanged.
    slopes = np.sum(np.where(np.isfinite(drawn), drawn, measured) * theory, axis=1) / length
    return float(np.sum(measured * theory)) / length, _interval(slopes)


def _centred(values: Array) -> Array:
    """Each row less its mean over what is finite: shape (draws, lengths)."""
    centred: Array = values - np.nanmean(values, axis=1, keepdims=True)
    return centred


def _interval(draws: Array) -> tuple[float, float] | None:
    if float(np.mean(~np.isfinite(draws))) > _LOST:
        return None
    low, high = np.nanquantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
