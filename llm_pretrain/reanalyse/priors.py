"""Priors of the laws from the published runs: those that ship, and those without one size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.convex import ConvexLaw
from llm_pretrain.predict.fit import Problem
from llm_pretrain.predict.law import Law
from llm_pretrain.predict.multipower import MultiPowerLaw
from llm_pretrain.predict.observe import Observation, curve_of, final
from llm_pretrain.predict.pool import pool
from llm_pretrain.predict.prior import Prior
from llm_pretrain.reanalyse.load import OFFSET, WEIGHT_DECAY, PaperRun

LAWS: tuple[Law, ...] = (AngularLaw(), ConvexLaw(), MultiPowerLaw())

_VAGUE: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "angular": {
        "floor": (-0.3, 0.5),
        "log_progress": (-0.6, 0.5),
        "log_alpha": (-0.8, 0.25),
        "log_noise": (-0.7, 0.5),
        "log_q": (-0.9, 0.3),
        "log_memory": (4.4, 1.0),
        "log_beta": (0.4, 0.2),
        "calming": (0.5, 0.4),
        "log_norm": (-7.0, 1.0),
        "log_progress_norm": (0.0, 1.0),
        "log_saturation": (-0.5, 1.0),
        "log_decay": (0.0, 0.3),
    },
    "convex bound": {
        "floor": (-0.5, 0.5),
        "log_a": (-0.3, 1.0),
        "log_p": (-1.1, 0.5),
        "log_b": (-1.0, 1.0),
        "log_q": (-0.7, 0.5),
    },
    "multi-power": {
        "floor": (-0.3, 0.5),
        "log_A": (0.0, 1.0),
        "log_alpha": (-0.7, 0.5),
        "log_B": (-1.5, 1.0),
        "log_C": (0.5, 1.5),
        "log_beta": (-0.7, 0.7),
        "gamma": (0.5, 0.5),
    },
}
"""Means and deviations before any run is seen: orders of magnitude, and exponents as published."""

APART = ("multi-power",)
"""Laws of one peak rate: each rate of a size is a model of its own."""

WIDER = {"floor": 0.1, "log_progress": 0.1, "log_noise": 0.1}
"""Added to the pooled deviations: the pooled models share their data and tokenizer, and another
project's do not."""


def vague(law: Law) -> Prior:
    """What is known of `law` before any run."""
    known = _VAGUE[law.title]
    means = np.array([known[name][0] for name in law.names])
    deviations = np.array([known[name][1] for name in law.names])
    return Prior(law.names, means, np.diag(deviations**2))


def pooled(law: Law, runs: Sequence[PaperRun], without: tuple[int, int] | None = None) -> Prior:
    """The prior of `law` from all sizes in `runs` but `without` (layers, width)."""
    start = vague(law)
    apart = law.title in APART
    groups: dict[tuple[object, ...], list[PaperRun]] = {}
    for run in runs:
        if run.size != without:
            groups.setdefault((*run.size, run.peak if apart else 0), []).append(run)
    problems = [
        Problem(law, observed(own), start, WEIGHT_DECAY, OFFSET)
        for _, own in sorted(groups.items())
        if any(run.kind == "trunk" for run in own)
    ]
    return pool(problems, start).widened(WIDER)


def observed(runs: Sequence[PaperRun]) -> tuple[Observation, ...]:
    """Everything usable of the runs: all losses on the whole set, and the curves of trunks."""
    found: list[Observation] = []
    for run in runs:
        if not run.diverged:
            found += finals(run)
            if run.kind == "trunk":
                found += curve(run)
    return tuple(found)


def finals(run: PaperRun) -> list[Observation]:
    """Losses on the whole validation set."""
    pairs = zip(run.finals.steps, run.finals.losses, strict=True)
    return [final(run.history, step, loss) for step, loss in pairs if step <= run.total]


def curve(run: PaperRun, until: int | None = None) -> list[Observation]:
    """The validation curve up to step `until`."""
    end = run.total if until is None else until
    pairs = zip(run.val.steps, run.val.losses, strict=True)
    kept = [(step, loss) for step, loss in pairs if 0 < step <= end]
    return list(curve_of(run.history, [s for s, _ in kept], [x for _, x in kept]))


def write(runs: Sequence[PaperRun], path: Path) -> None:
    """Pool the priors of all laws and write the file that ships with the package."""
    laws: dict[str, Any] = {law.title: pooled(law, runs).to_dict() for law in LAWS}
    source = (
        "runs of arXiv 2405.18392 and 2501.18965, from github.com/fabian-sp/lr-scheduling (MIT)"
    )
    path.write_text(json.dumps({"source": source, "laws": laws}, indent=1) + "\n")
