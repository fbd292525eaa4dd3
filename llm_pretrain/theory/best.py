"""The schedules with the least bound, exactly: what linear decay and 1-sqrt are measured against.

With constant G the noise of the last-iterate bound (bound.py) is, in terms of the suffix sums S_k,

    G^2 / 2 [ sum_{k<T} (S_k - S_{k+1})^2 / S_{k+1} + S_T ],

a sum of squares over positive linear functions, hence jointly convex; for a given S_1 the distance
term is fixed. A stationary point is therefore the best schedule of all. The derivative by S_{k+1}
vanishes when r_k = sqrt(2 r_{k+1} - 1) for the ratios r_k = S_k / S_{k+1}, which unrolls from the
end of the run. That schedule would rise at the last update; with the rates kept from rising the
last three are equal, and r_{T-3} = sqrt(11 / 6). The derivation is ours. Schaipp et al. 2025 (arXiv
2501.18965) minimise the same bound by gradient descent, for T = 100.
"""

import math

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.theory.bound import Array, last_iterate

_EQUAL = 3
"""Updates at the end that have the same rate."""


def best_falling(total: int) -> Array:
    """The multipliers with the least bound among all that never rise: shape (total,), the first 1.

    Raises UserError unless `total` is positive.
    """
    rates = _tail(total)
    rates /= rates[0]
    return rates


def best_cooldown(total: int, cooldown: int) -> Array:
    """The same among those that are constant before a cooldown of `cooldown` updates.

    The cooldown has the shape of `best_falling`, since its noise depends on what precedes it only
    through its sum; how far the rate drops at its start is found by a search in one dimension.
    Raises UserError unless 0 < cooldown <= total.
    """
    if not 0 < cooldown <= total:
        raise UserError(f"cooldown: {cooldown} updates of {total}; use 1 to {total}")
    tail = best_falling(cooldown)
    if cooldown == total:
        return tail
    from scipy.optimize import minimize_scalar  # noqa: PLC0415  (not for --help)

    def bound(drop: float) -> float:
        return last_iterate(_joined(total, drop, tail)).optimal_bound

    found = minimize_scalar(bound, bounds=(0.01, 1.0), method="bounded", options={"xatol": 1e-9})
    return _joined(total, min(float(found.x), 1.0, key=bound), tail)


def _joined(total: int, drop: float, tail: Array) -> Array:
    """A constant 1, then `tail` times `drop`."""
    return np.concatenate([np.ones(total - len(tail)), drop * tail])


def _tail(total: int) -> Array:
    """The rates of `best_falling` with the last 1."""
    if total < 1:
        raise UserError(f"steps: {total}; a schedule needs at least 1 update")
    rates = np.ones(total)
    excess, later = math.sqrt(11 / 6) - 1, float(_EQUAL)  # r_k - 1 and S_{k+1}
    for k in range(total - _EQUAL - 1, -1, -1):
        rates[k] = excess * later
        later += rates[k]
        excess = 2 * excess / (math.sqrt(1 + 2 * excess) + 1)  # sqrt(1 + 2x) - 1, without loss
    return rates
