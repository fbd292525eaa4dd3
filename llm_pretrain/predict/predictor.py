"""The loss a run would end at, with an interval: what `branch plan` and the report show."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.fit import Posterior, Problem, infer
from llm_pretrain.predict.history import Array, Case, History
from llm_pretrain.predict.law import Law, named
from llm_pretrain.predict.observe import REPEAT, Observation
from llm_pretrain.predict.prior import Prior, shipped
from llm_pretrain.schedule.schedule import Schedule

QUANTILE = 1.2816
"""An interval of this many standard deviations on both sides holds 80 % of a normal variable."""
_POINTS, _FACTOR = 6, 2.0
"""A curve with fewer points, or over a smaller range of steps, says too little of how it goes on.
"""
_RATES, _LENGTHS = 2.0, 4.0
"""Factors beyond what was seen up to which the predictor was tested."""


@dataclass(frozen=True)
class Prediction:
    """The final loss of a run, in nats."""

    loss: float
    low: float
    """The run ends between `low` and `high` in 80 % of cases."""
    high: float


class Predictor:
    """A law fitted to the runs of one model on one mixture of data, with one batch size."""

    def __init__(self, found: Posterior, noise: float = REPEAT) -> None:
        self._found = found
        self._noise = noise

    @classmethod
    def fit(
        cls,
        observations: Sequence[Observation],
        *,
        weight_decay: float,
        offset: tuple[float, float] = (0.0, 0.0),
        noise: float = REPEAT,
        law: Law | None = None,
        prior: Prior | None = None,
    ) -> "Predictor":
        """Fit a law (the angular one) to measured losses.

        `offset`: mean and deviation of how much lower losses of the kind "curve" were measured than
        final ones; zeros when both are on the same sequences. `noise`: standard deviation of the
        final loss between repeated runs. `prior`: the one that ships when None. Takes less than a
        second. Raises UserError where `lacking` has a reason.
        """
        reason = lacking(observations)
        if reason is not None:
            raise UserError(f"no prediction: {reason}")
        if not 0 <= weight_decay < np.inf:
            raise UserError(f"weight_decay: {weight_decay:g}; needs a number of 0 or more")
        law = law or AngularLaw()
        known = shipped(law) if prior is None else prior
        problem = Problem(law, tuple(observations), known, weight_decay, offset)
        return cls(infer(problem), noise)

    @property
    def parameters(self) -> dict[str, float]:
        """The most probable parameters of the law, by name."""
        law = self._found.best.problem.law
        return named(law, self._found.best.values[: len(law.names)])

    def predict(self, schedule: Schedule | History | Array, step: int | None = None) -> Prediction:
        """The loss after `step` updates (all of them when None) of a run with this schedule.

        An array holds the learning rate of every update. Raises UserError for a step outside of it.
        """
        return self.predict_all([(schedule, step)])[0]

    def predict_all(
        self, runs: Sequence[tuple[Schedule | History | Array, int | None]]
    ) -> list[Prediction]:
        """`predict` for several at once."""
        cases = [_case(schedule, step) for schedule, step in runs]
        if not cases:
            return []
        mean, deviation = self._found.predict(cases)
        half = QUANTILE * np.hypot(deviation, self._noise)
        return [
            Prediction(float(m), float(m - h), float(m + h))
            for m, h in zip(mean, half, strict=True)
        ]

    def caution(self, schedule: Schedule | History | Array, step: int | None = None) -> str | None:
        """Why the interval of this prediction may be too narrow, or None.

        Beyond the rates and lengths seen, the law goes on as it was; training need not. Above the
        largest rate, it may become unstable, which no law here knows.
        """
        case, seen = _case(schedule, step), self._found.best.problem.cases
        rate, rates = case.history.peak(case.step), [c.history.peak(c.step) for c in seen]
        if not min(rates) / _RATES <= rate <= max(rates) * _RATES:
            return (
                f"its peak rate {rate:g} is more than a factor {_RATES:g} from those seen, "
                f"{min(rates):g} to {max(rates):g}"
            )
        longest = max(c.step for c in seen)
        if case.step > _LENGTHS * longest:
            return f"it has {case.step} steps, over {_LENGTHS:g} times the {longest} seen"
        return None


def lacking(observations: Sequence[Observation]) -> str | None:
    """Why nothing can be predicted from these yet, or None."""
    curve = [o.case.step for o in observations if o.kind == "curve"]
    if len(curve) < _POINTS:
        return (
            f"the trunk's curve has {len(curve)} usable points after the warmup and its steepest "
            f"part; needs {_POINTS}"
        )
    if max(curve) < _FACTOR * min(curve):
        return (
            f"the trunk's curve goes from step {min(curve)} to {max(curve)}; needs one over a "
            f"factor of {_FACTOR:g}, so to step {int(_FACTOR * min(curve))}"
        )
    return None


def _case(schedule: Schedule | History | Array, step: int | None) -> Case:
    if isinstance(schedule, Schedule):
        schedule = History(schedule.rates())
    history = schedule if isinstance(schedule, History) else History(schedule)
    return Case(history, history.total if step is None else step)
