"""Values with their 95% intervals, and the draws that the intervals come from."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_pretrain.scaling.solve import Array, Signs

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A fitted value and its 95% interval; an end is None where the data leave it open."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, drawn: Array, edge: Signs | None = None) -> "Estimate":
        """With percentiles of what was found in draws.

        Infinite draws count; NaN, of which nothing is known, count as beyond both ends. `edge`: of
        every draw, as of `opened`.
        """
        if edge is not None:
            drawn = opened(drawn, edge)
        unknown = np.isnan(drawn)
        # Outwards to a draw: infinite ones cannot be interpolated, and inwards is too narrow.
        below, above = (np.where(unknown, end, drawn) for end in (-np.inf, np.inf))
        low = float(np.percentile(below, _ENDS[0], method="lower"))
        high = float(np.percentile(above, _ENDS[1], method="higher"))
        ends = [end if math.isfinite(end) else None for end in (low, high)]
        return cls(float(value), ends[0], ends[1])

    def contains(self, value: float) -> bool:
        """Whether a value lies in the interval."""
        above = self.low is None or self.low <= value
        return above and (self.high is None or value <= self.high)


def opened(drawn: Array, edge: Signs) -> Array:
    """Draws, infinite where the search ended at its lower (-1) or upper (1) bound.

    An end of an interval there would be the bound and nothing that the data say. NaN where even
    the direction is unknown (2).
    """
    found = np.where(edge == 0, drawn, np.copysign(np.inf, edge))
    return np.asarray(np.where(edge == 2, np.nan, found))


def noise(residuals: Array, fitted: int, draws: int, seed: int) -> Array:
    """Errors to be added to logarithms of losses in each draw, shape (draws, n).

    Normal, with the deviation of the residuals by the n - `fitted` degrees of freedom that are
    left, and wider by the ratio of Student's to the normal quantile: a deviation from few runs is
    itself uncertain, and intervals without this are too narrow.
    """
    free = len(residuals) - fitted
    deviation = float(np.sqrt(np.sum(residuals**2) / free))
    wider = float(stats.t.ppf(0.5 + _LEVEL / 2, free) / stats.norm.ppf(0.5 + _LEVEL / 2))
    drawn = np.random.default_rng(seed).standard_normal((draws, len(residuals)))
    return np.asarray(deviation * wider * drawn)


_ENDS = (100 * (1 - _LEVEL) / 2, 100 * (1 + _LEVEL) / 2)
