"""Which source each sequence of a run comes from: a fixed pattern made from the weights."""

import heapq
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from llm_pretrain.errors import UserError

Integers = npt.NDArray[np.int64]

PERIOD = 10_000
"""Slots after which the pattern repeats; weights are rounded to multiples of 1 / PERIOD."""


class Mixture:
    """Deals the slots 0, 1, 2, ... of a stretch of training to sources in a fixed proportion.

    After any number of slots each source has had its quota to within one sequence. Memory is
    bounded by PERIOD whatever the length of the run.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights` are relative shares above 0. Raises UserError for more than PERIOD sources."""
        self.names = list(weights)
        self.quotas = quantise(weights)
        self._quotas = np.array(self.quotas, dtype=np.int64)
        self._source = _pattern(self.quotas)
        self._rank = np.empty(len(self._source), dtype=np.int64)
        for source in range(len(self.names)):
            mine = np.flatnonzero(self._source == source)
            self._rank[mine] = np.arange(mine.size)

    def locate(self, slots: Integers) -> tuple[Integers, Integers]:
        """Source of each slot (an index into `names`) and how many slots that source had before.

        `slots` and both results have the same shape.
        """
        rounds, place = np.divmod(slots, len(self._source))
        source = self._source[place]
        return source, rounds * self._quotas[source] + self._rank[place]

    def consumed(self, slots: int) -> list[int]:
        """How many of the first `slots` slots each source had, in the order of `names`."""
        rounds, rest = divmod(slots, len(self._source))
        begun = np.bincount(self._source[:rest], minlength=len(self.names))
        return [rounds * q + int(b) for q, b in zip(self.quotas, begun, strict=True)]


def quantise(weights: Mapping[str, float]) -> list[int]:
    """Slots per period of each source: largest remainders, at least one, without common divisor.

    Raises UserError when there are more sources than slots or a weight is not above 0.
    """
    if not 0 < len(weights) <= PERIOD:
        raise UserError(f"data.sources: {len(weights)} sources; from 1 to {PERIOD} can be mixed")
    for name, weight in weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"data.sources.{name}.weight: {weight} is not a number above 0")
    # Fractions: the pattern must not depend on how a machine rounds.
    total = sum(Fraction(weight) for weight in weights.values())
    shares = [Fraction(weight) * PERIOD / total for weight in weights.values()]
    quotas = [max(1, math.floor(share)) for share in shares]
    while (missing := PERIOD - sum(quotas)) != 0:
        owed = [share - quota for share, quota in zip(shares, quotas, strict=True)]
        if missing > 0:
            quotas[max(range(len(quotas)), key=owed.__getitem__)] += 1
        else:
            can_give = [i for i, quota in enumerate(quotas) if quota > 1]
            quotas[min(can_give, key=owed.__getitem__)] -= 1
    divisor = math.gcd(*quotas)
    return [quota // divisor for quota in quotas]


def _pattern(quotas: list[int]) -> Integers:
    """Source of each slot of a period, as even as whole sequences allow.

    The k-th sequence of a source with q of P slots belongs into [floor(k P / q),
    ceil((k + 1) P / q)); dealing the earliest deadline first meets all of these windows, since
    the shares add up to one, and inside them no source is a whole sequence early or late.
    """
    period = sum(quotas)
    waiting = [(0, source, 0) for source in range(len(quotas))]  # (release, source, k)
    ready: list[tuple[int, int, int]] = []  # (deadline, source, k)
    pattern = np.empty(period, dtype=np.int64)
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, source, k = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(k + 1) * period // quotas[source]), source, k))
        _, source, k = heapq.heappop(ready)
        pattern[slot] = source
        heapq.heappush(waiting, ((k + 1) * period // quotas[source], source, k + 1))
    return pattern
