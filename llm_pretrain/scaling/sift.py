"""Which results a law is fitted to: runs that failed are left out, each with the reason."""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from llm_pretrain.scaling.parametric import (
    IN_TOKENS,
    PARAMETERS,
    enough_lengths,
    lacking,
    residuals,
    residuals_of_one_size,
)
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.scaling.solve import Array

FAILED = 2.0
"""A loss this many times the median of the runs of its size that are no longer has diverged; and
one this many times what the law says."""
MULTIPLE = 6.0
"""Of the robust deviation: a residual beyond it is of a run that has gone wrong."""
LEAST = 0.005
"""Of the loss: a residual below it is none, however close to the law the others are."""
_NORMAL = 0.6745
"""The median of the absolute value of a standard normal variable."""


def sift(points: Sequence[Point]) -> tuple[list[Point], list[Excluded]]:
    """The points that a law can be fitted to, and the others, each with the reason.

    Left out are numbers that are none, losses far above those of shorter runs of the same size,
    and runs far from a robust fit to all: by more than 6 robust deviations and 0.5% of the loss.
    """
    sound, out = _parted(points, _unusable)
    sound, failed = _parted(sound, lambda point: _diverged(point, sound))
    kept, far = _close(sound)
    return kept, [*out, *failed, *far]


def by_size(points: Sequence[Point]) -> list[list[Point]]:
    """Points of each number of parameters, smallest first."""
    sizes = sorted({p.params for p in points})
    return [[p for p in points if p.params == size] for size in sizes]


def deviation(left: Array, fitted: int) -> float:
    """A robust deviation of residuals: their median size over that of a normal variable.

    A robust fit of `fitted` parameters goes through as many points nearly exactly; so many of the
    smallest residuals are not counted.
    """
    size = np.sort(np.abs(left))
    return float(np.median(size[min(fitted, len(size) - 1) :]) / _NORMAL)


def _parted(
    points: Sequence[Point], reason: Callable[[Point], str]
) -> tuple[list[Point], list[Excluded]]:
    """Those without a reason against them, and the others with it."""
    kept, out = [], []
    for point in points:
        said = reason(point)
        if said:
            out.append(Excluded(point.run, said))
        else:
            kept.append(point)
    return kept, out


def _unusable(point: Point) -> str:
    """What is no number that a law can take; empty when all are."""
    if math.isnan(point.loss):
        return "its loss is NaN"
    if not math.isfinite(point.loss) or point.loss <= 0:
        return f"its loss is {point.loss:g}"
    for name in ("params", "tokens", "flops"):
        value = getattr(point, name)
        if not math.isfinite(value) or value <= 0:
            return f"its {name} are {value:g}"
    return ""


def _diverged(point: Point, others: Sequence[Point]) -> str:
    """Whether a loss is far above those of shorter runs, which it should be below; or empty."""
    alike = [
        other.loss
        for other in others
        if other is not point
        and (other.params, other.source) == (point.params, point.source)
        and other.tokens <= point.tokens
    ]
    # One run alone may itself be the one that went wrong.
    if len(alike) < 2 or point.loss <= FAILED * statistics.median(alike):
        return ""
    times = point.loss / statistics.median(alike)
    return (
        f"diverged: loss {point.loss:.4g}, {times:.3g} times the median of the runs of its size "
        "that are no longer"
    )


def _close(points: Sequence[Point]) -> tuple[list[Point], list[Excluded]]:
    """Those near a robust fit, and the others; fitted again until nobody is left out."""
    kept = list(points)
    out: list[Excluded] = []
    while True:
        groups = [(kept, residuals, PARAMETERS)]
        if lacking(kept):
            own = [group for group in by_size(kept) if enough_lengths(group)]
            groups = [(group, residuals_of_one_size, IN_TOKENS) for group in own]
        reasons = {
            point: reason
            for group, fitted, count in groups
            for point, reason in _far(group, fitted(group), count)
        }
        if not reasons:
            return kept, out
        out += [Excluded(point.run, reasons[point]) for point in kept if point in reasons]
        kept = [point for point in kept if point not in reasons]


def _far(points: Sequence[Point], left: Array, fitted: int) -> list[tuple[Point, str]]:
    """Runs too far from the fit, with the numbers."""
    usual = deviation(left, fitted)
    limit = max(MULTIPLE * usual, LEAST)
    found = []
    for point, residual in zip(points, left, strict=True):
        if abs(residual) <= limit:
            continue
        share = math.expm1(residual)
        where = f"{100 * abs(share):.3g}% {'above' if share > 0 else 'below'} a robust fit to all"
        word = "diverged" if share >= FAILED - 1 else "noisy"
        found.append(
            (
                point,
                f"{word}: loss {point.loss:.4g}, {where}, whose robust deviation is "
                f"{100 * usual:.2g}% (limit {100 * limit:.2g}%)",
            )
        )
    return found
