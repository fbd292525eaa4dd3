"""What a law gets wrong, as a Gaussian process: alike for runs that are alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.predict.history import Array, Case

DEVIATION = 0.003
"""Nats. Chosen, as the lengths, on the runs of Hägele et al. 2024, for the share that intervals of
80 % hold; half or twice as much changes the errors by a fifth at most."""
_LENGTHS = np.array([0.7, 1.2, 0.6])
"""How far the error of the law reaches: a factor 2 in the peak rate, 3.3 in steps, and from a trunk
halfway to a cooled run."""


@dataclass(frozen=True)
class Discrepancy:
    """Covariance of the errors of a law: Kennedy and O'Hagan 2001, with a Gaussian kernel."""

    deviation: float = DEVIATION

    def covariance(self, here: Array, there: Array) -> Array:
        """Between cases with these `places`: shape (N, M), nats squared."""
        apart = (here[:, None, :] - there[None, :, :]) / _LENGTHS
        return np.asarray(self.deviation**2 * np.exp(-np.sum(apart**2, axis=2) / 2))


def places(cases: Sequence[Case]) -> Array:
    """Logarithm of the peak rate, logarithm of the step, and warmth of each: shape (N, 3)."""
    rows = [
        (np.log(c.history.peak(c.step)), np.log(c.step), c.history.warmth(c.step)) for c in cases
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
