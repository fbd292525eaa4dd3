"""The loss predictor on the published runs: every law on every split, with its outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.history import Case, History
from llm_pretrain.predict.law import Law
from llm_pretrain.reanalyse.comparisons import model
from llm_pretrain.reanalyse.load import PaperRun
from llm_pretrain.reanalyse.priors import LAWS, pooled
from llm_pretrain.reanalyse.score import Score, Summary, score, summarise
from llm_pretrain.reanalyse.splits import splits

_END = Case(History(np.ones(1)), 1)
CHOSEN = AngularLaw().title
"""The law that predictions of this package use."""


@dataclass(frozen=True)
class Outcome:
    """One loss that was predicted, and then looked up."""

    title: str
    """Of the split."""
    detail: str
    model: str
    predicted: float
    half_width: float
    """Of its interval of 80 %."""
    measured: float


@dataclass(frozen=True)
class Trials:
    """What one or all laws did."""

    summaries: list[Summary]
    outcomes: list[Outcome]
    """Of the chosen law."""


@dataclass(frozen=True)
class Trial:
    """One law on the splits of one model, with a prior from the other models: some seconds."""

    law: Law
    size: tuple[int, int]


def trials(runs: Sequence[PaperRun]) -> list[Trial]:
    """All, the longest first. None for a model unless another has a trunk to take a prior from."""
    with_trunk = {run.size for run in runs if run.kind == "trunk" and run.val.steps}
    counts = {size: sum(run.size == size for run in runs) for size in with_trunk}
    sizes = sorted((s for s in counts if with_trunk - {s}), key=lambda s: -counts[s])
    return [Trial(law, size) for size in sizes for law in LAWS]


def outcomes(trial: Trial, runs: Sequence[PaperRun]) -> list[Score]:
    """The scores of one trial, without the data that were fitted."""
    own = splits([run for run in runs if run.size == trial.size])
    if not own:
        return []
    prior = pooled(trial.law, runs, without=trial.size)
    return [_light(score(trial.law, split, prior)) for split in own]


def collected(scores: Sequence[Score]) -> Trials:
    """Summaries by split, the chosen law first in each, and the chosen law's outcomes."""
    order = [law.title for law in LAWS]
    found = sorted(summarise(scores), key=lambda s: (s.title, order.index(s.law)))
    return Trials(found, [o for s in scores if s.law == CHOSEN for o in _outcomes(s)])


def _light(one: Score) -> Score:
    """Histories are long, and a score passes from process to process."""
    ends = tuple(replace(o, case=_END) for o in one.split.held_out)
    return replace(one, split=replace(one.split, fitted=(), held_out=ends))


def _outcomes(one: Score) -> list[Outcome]:
    rows = zip(one.split.held_out, one.errors.tolist(), one.half_widths.tolist(), strict=True)
    name = model(one.split.size)
    return [
        Outcome(one.split.title, one.split.detail, name, o.loss + error, half, o.loss)
        for o, error, half in rows
    ]
