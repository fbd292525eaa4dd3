"""A constant run carried on to a longer horizon: what to do with its learning rate.

A rate tuned for T1 updates is too high for a longer run of the same kind. Schaipp et al. 2025
(arXiv 2501.18965, their transfer to longer horizons) keep the constant part and restore the match,
which is that the base rate with the least bound stays what it was, in one of two ways: lower the
rate from the branch point on, or keep it and lengthen the cooldown.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.schedule.phase import Phase
from llm_pretrain.schedule.schedule import Schedule
from llm_pretrain.theory.bound import Terms
from llm_pretrain.theory.transfer import terms_of

_LEAST_FACTOR = 0.01
_SCANNED = 33
"""Factors that are tried, from 1 down, before a root is looked for between two of them."""


@dataclass(frozen=True)
class Tuning:
    """The run that a rate is taken to be tuned for, where the run at hand has no cooldown."""

    total: int
    cooldown: int
    """Updates at its end."""
    shape: str
    """One of schedule/shapes.py's FALLS."""
    floor: float


@dataclass(frozen=True)
class Trunk:
    """A run whose rate is constant before its cooldown, and what its rate was tuned for."""

    constant: Schedule
    """Up to the end of its constant part, which may be moved."""
    lr: float
    """Peak learning rate, taken to be the best for `tuned`."""
    cooldown: Phase
    """The one that it was tuned with, which ends where that run did."""
    at: int
    """Branch point: updates done before the rate may change."""

    @classmethod
    def of(
        cls, schedule: Schedule, lr: float, tuning: Tuning | None = None, at: int | None = None
    ) -> "Trunk":
        """Of a run's schedule and peak rate.

        `tuning`: needed when it has no cooldown, and only then. `at`: by default where its constant
        part ends. Raises UserError when it has no constant part, or `at` is not in it.
        """
        cooldown = schedule.cooldown
        constant = schedule if cooldown is None else schedule.until(cooldown.start)
        last = constant.phases[-1] if constant.phases else schedule.phases[-1]
        if last.kind != "constant":
            raise UserError(
                f"run: its rate is not constant before its cooldown ({schedule.describe()}); only "
                "constant runs can be carried on, others have their horizon built in"
            )
        at = constant.total if at is None else at
        if not last.start <= at <= constant.total:
            raise UserError(
                f"at: step {at} is not in the constant part of the run; "
                f"use {last.start} to {constant.total}"
            )
        if cooldown is None:
            assert tuning is not None
            cooldown = _cooldown(tuning, last)
        return cls(constant, lr, cooldown, at)

    @property
    def ready(self) -> int:
        """Where its constant part begins."""
        return self.constant.phases[-1].start

    @property
    def tuned(self) -> Schedule:
        """The run that its rate is taken to be the best for."""
        return self.extended(self.cooldown.end, self.cooldown.length)

    def extended(self, total: int, cooldown: int, factor: float = 1.0) -> Schedule:
        """Its constant rate, `factor` times that from `at` on, and a cooldown at the end."""
        last, start, like = self.constant.phases[-1], total - cooldown, self.cooldown
        drop = start if factor == 1.0 else min(self.at, start)
        level, floor = factor * last.first, factor * like.last
        phases = [
            replace(last, length=drop - last.start),
            Phase("constant", drop, start - drop, level, level, "linear", last.peak),
            replace(like, start=start, length=cooldown, first=level, last=floor, peak=last.peak),
        ]
        present = [phase for phase in phases if phase.length > 0]
        ends = (phase.end for phase in present)
        return Schedule((*self.constant.phases[:-1], *present), (*self.constant.cuts[:-1], *ends))


def _cooldown(tuning: Tuning, constant: Phase) -> Phase:
    start = tuning.total - tuning.cooldown
    if not constant.start <= start < tuning.total:
        raise UserError(
            f"cooldown.length: {tuning.cooldown} steps do not fit into a run of {tuning.total} "
            f"steps that is constant from step {constant.start} on"
        )
    if tuning.floor > constant.first:
        raise UserError(
            f"cooldown.floor: {tuning.floor:g} is above the constant multiplier {constant.first:g}"
        )
    return Phase(
        "cooldown", start, tuning.cooldown, constant.first, tuning.floor, tuning.shape,
        constant.peak,
    )  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One way to carry on."""

    what: str
    branch: int
    """Updates after which it departs from a constant rate that merely goes on."""
    factor: float
    """What of the peak rate remains after that."""
    cooldown: int
    """Length of the cooldown, in updates."""
    schedule: Schedule
    terms: Terms
    bound: float
    """At the rate that the run has, in units of D G."""
    ratio: float
    """Rate with the least bound, over the rate it has: 1 where the two match."""


def options(trunk: Trunk, total: int, *, asked: str = "to") -> list[Option]:
    """The ways to carry on to `total` updates, beginning with everything kept as it is.

    "lower rate, matched" is missing where no factor matches, "longer cooldown" is the whole run
    where even that would need a lower rate. Raises UserError unless `total` lies behind the run;
    it is called `asked` then.
    """
    end = max(trunk.cooldown.end, trunk.constant.total)
    if total <= end:
        raise UserError(f"{asked}: step {total} is not after the run's {end} steps")
    usual = int(Fraction(trunk.cooldown.length, trunk.cooldown.end) * total)
    target = terms_of(trunk.tuned, trunk.lr).optimal_rate

    def made(what: str, branch: int, cooldown: int, factor: float = 1.0) -> Option:
        schedule = trunk.extended(total, cooldown, factor)
        terms = terms_of(schedule, trunk.lr)
        ratio = terms.optimal_rate / target
        return Option(what, branch, factor, cooldown, schedule, terms, terms.at(target), ratio)

    found = [made("as it is", total - usual, usual)]
    if trunk.at < total - usual:
        lowered = _Lowered(trunk, total, usual, target)
        root = lowered.matched()
        if root is not None:
            found.append(made("lower rate, matched", trunk.at, usual, root))
        found.append(made("lower rate, least bound", trunk.at, usual, lowered.least()))
    longer = _longer(trunk, total, target)
    found.append(made("longer cooldown, matched", total - longer, longer))
    if total - longer < trunk.at < total - usual:
        rest = total - trunk.at
        found.append(made("cooldown over the rest", trunk.at, rest))
    return found


@dataclass(frozen=True)
class _Lowered:
    """The rate lowered from the branch point on, as a function of the factor."""

    trunk: Trunk
    total: int
    cooldown: int
    target: float
    """The base rate that is to have the least bound."""

    def terms(self, factor: float) -> Terms:
        return terms_of(self.trunk.extended(self.total, self.cooldown, factor), self.trunk.lr)

    def excess(self, factor: float) -> float:
        """Positive where a higher base rate would have a lower bound."""
        return self.terms(factor).optimal_rate / self.target - 1

    def matched(self) -> float | None:
        """The largest factor below 1 for which the rate is right, if there is one."""
        from scipy.optimize import brentq  # noqa: PLC0415  (not for --help)

        above = 1.0
        for below in np.geomspace(1, _LEAST_FACTOR, _SCANNED)[1:].tolist():
            if self.excess(below) >= 0:
                return float(brentq(self.excess, below, above, xtol=1e-12, rtol=1e-12))
            above = below
        return None

    def least(self) -> float:
        """The factor with the least bound at the rate that the run has."""
        from scipy.optimize import minimize_scalar  # noqa: PLC0415  (not for --help)

        def bound(factor: float) -> float:
            return self.terms(factor).at(self.target)

        span = (_LEAST_FACTOR, 1.0)
        return float(minimize_scalar(bound, span, bounds=span, options={"xatol": 1e-7}).x)


def _longer(trunk: Trunk, total: int, target: float) -> int:
    """The cooldown, in updates, whose best rate is nearest to the target; the whole run at most."""

    def rate(cooldown: int) -> float:
        return terms_of(trunk.extended(total, cooldown), trunk.lr).optimal_rate

    return nearest(rate, target, 1, total - trunk.ready)


def nearest(rising: Callable[[int], float], target: float, low: int, high: int) -> int:
    """The integer from `low` to `high` whose value is nearest to `target`, by bisection."""
    if rising(high) <= target:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if rising(middle) <= target:
            low = middle
        else:
            high = middle
    return min(low, high, key=lambda count: abs(rising(count) - target))
