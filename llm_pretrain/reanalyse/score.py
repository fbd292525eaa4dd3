"""How well laws predict the held-out losses of each split, and how much their intervals hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.predict.fit import Problem, infer
from llm_pretrain.predict.history import Array
from llm_pretrain.predict.law import Law
from llm_pretrain.predict.observe import REPEAT
from llm_pretrain.predict.predictor import QUANTILE
from llm_pretrain.predict.prior import Prior
from llm_pretrain.reanalyse.load import OFFSET, WEIGHT_DECAY
from llm_pretrain.reanalyse.splits import Split


@dataclass(frozen=True)
class Score:
    """The predictions of one law in one split."""

    law: str
    split: Split
    errors: Array
    """Predicted less measured, nats, shape (M,)."""
    half_widths: Array
    """Of the intervals of 80 %, which include the noise of a run: the same shape."""


@dataclass(frozen=True)
class Summary:
    """Scores of one law over splits of one title."""

    law: str
    title: str
    count: int
    """Losses predicted."""
    mean: float
    """Mean absolute error, nats."""
    worst: float
    bias: float
    """Mean of predicted less measured."""
    held: float
    """Share of the losses inside their interval of 80 %."""
    half_width: float
    """Mean."""


def score(law: Law, split: Split, prior: Prior) -> Score:
    """Fit `law` to the fitted part and predict the rest."""
    found = infer(Problem(law, split.fitted, prior, WEIGHT_DECAY, OFFSET))
    mean, deviation = found.predict([o.case for o in split.held_out])
    errors = mean - np.array([o.loss for o in split.held_out])
    return Score(law.title, split, errors, QUANTILE * np.hypot(deviation, REPEAT))


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """One summary per law and title, in the order of the scores."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for one in scores:
        groups.setdefault((one.law, one.split.title), []).append(one)
    return [_summary(law, title, own) for (law, title), own in groups.items()]


def _summary(law: str, title: str, own: Sequence[Score]) -> Summary:
    errors = np.concatenate([s.errors for s in own])
    half = np.concatenate([s.half_widths for s in own])
    sizes = np.abs(errors)
    return Summary(
        law=law,
        title=title,
        count=len(errors),
        mean=float(sizes.mean()),
        worst=float(sizes.max()),
        bias=float(errors.mean()),
        held=float(np.mean(sizes <= half)),
        half_width=float(half.mean()),
    )
