"""The Multi-Power Law of Luo et al. 2025."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.predict.history import Array, Case, Stretches, remaining

_RATE = 1e-3
_COUNT = 1000.0
"""Units of the rate and of updates; their product is the unit of area."""


@dataclass(frozen=True)
class Areas:
    """What the law needs of each case, in its units."""

    total: Array
    """S_1, the sum of all rates, shape (N,)."""
    falls: Array
    """How much the rate falls into each stretch after the first, shape (N, STRETCHES - 1)."""
    rates: Array
    """The rate after the fall, the same shape."""
    later: Array
    """The sum of the rates from there on, the same shape."""


@dataclass(frozen=True)
class MultiPowerLaw:
    """L = floor + A (S_1 + S_W)^-alpha - B sum_k (eta_{k-1} - eta_k) G(eta_k^-gamma S_k).

    With G(x) = 1 - (1 + C x)^-beta and S_k the sum of the rates from update k on: Luo et al. 2025
    (arXiv 2503.12811), equation 3. S_W is the area of the warmup, whose rates count here as any
    others, so it is left out; only falls of the rate count as such, as the law begins at the peak.
    """

    title: str = "multi-power"
    names: tuple[str, ...] = (
        "floor",
        "log_A",
        "log_alpha",
        "log_B",
        "log_C",
        "log_beta",
        "gamma",
    )

    def prepare(self, cases: Sequence[Case], decay: float) -> Areas:
        """Areas and falls; the weight decay is no part of this law."""
        cut = Stretches.of(cases)
        rates = _filled(cut.lengths, cut.rates) / _RATE
        later = remaining(cut.lengths / _COUNT * cut.rates / _RATE)
        falls = np.maximum(rates[:, :-1] - rates[:, 1:], 0)
        return Areas(later[:, 0], falls, rates[:, 1:], later[:, 1:])

    def losses(self, values: Array, prepared: Areas) -> Array:
        """Losses of shape (N,) in nats."""
        floor, a, alpha, b, c, beta, gamma = values
        reached = np.exp(c) * prepared.rates**-gamma * prepared.later
        drop = np.sum(prepared.falls * (1 - (1 + reached) ** -np.exp(beta)), axis=1)
        return np.asarray(floor + np.exp(a) * prepared.total ** -np.exp(alpha) - np.exp(b) * drop)


def _filled(lengths: Array, rates: Array) -> Array:
    """The rates, with that of the last stretch before it in each empty one."""
    places = np.maximum.accumulate(np.where(lengths > 0, np.arange(lengths.shape[1]), 0), axis=1)
    return np.take_along_axis(rates, places, axis=1)
