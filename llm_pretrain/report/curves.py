"""The points of the charts: what was measured, and how branches join their parents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_pretrain.report.analysis import interpolate
from llm_pretrain.report.data import Evaluation, RunData, Training, evaluations_until, lineage

MOST_ROWS = 2000
"""Training rows drawn of a run; with more, each point is the mean of neighbouring rows."""
MOST_RATES = 500
"""Points of a learning-rate path."""


@dataclass
class Curve:
    """A line of a chart; `remarks` is what hovering adds to the value of each point."""

    run: RunData
    of: str = ""
    """What of the run it shows, where that is not the run itself."""
    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, step: int, tokens: int, value: float, remark: str = "") -> None:
        """Append a point."""
        self.steps.append(step)
        self.tokens.append(tokens)
        self.values.append(value)
        self.remarks.append(remark)


def validation(run: RunData) -> Curve:
    """The evaluations of a run, from the point where it leaves its parent's curve."""
    curve = Curve(run)
    joint = joint_of(run) if run.evaluations else None
    if joint:
        curve.add(joint.step, joint.tokens, joint.loss, f" ± {joint.stderr:.4f}, on its parent")
    for e in run.evaluations:
        curve.add(e.step, e.tokens, e.loss, f" ± {e.stderr:.4f}")
    return curve


def averaged(run: RunData) -> Curve:
    """The losses of the run's best averages, wherever one was evaluated."""
    curve = Curve(run, "averaged")
    for e in run.evaluations:
        if e.average:
            name, loss = e.average
            curve.add(e.step, e.tokens, loss, f", {name}")
    return curve


def training(run: RunData) -> Curve:
    """The training loss of a run as logged, from its parent's last row before the branch."""
    curve = Curve(run)
    earlier = [row for r in lineage(run)[:-1] for row in r.training if row.step <= run.begin]
    if earlier and run.training:
        last = max(earlier, key=lambda row: row.step)
        curve.add(last.step, last.tokens, last.loss, " on its parent")
    for row in thinned(run.training):
        curve.add(row.step, row.tokens, row.loss)
    return curve


def rates(run: RunData) -> Curve:
    """The learning rate of each update that the run trains itself, by its config."""
    curve = Curve(run)
    for step in rate_steps(run):
        curve.add(step, run.clock.tokens_at(step), run.schedule.lr(step))
    return curve


def joint_of(run: RunData) -> Evaluation | None:
    """Where a branch leaves its parent's validation curve; None without a comparable parent."""
    parent = run.parent
    if parent is None or parent.held_out != run.held_out:
        return None
    before = evaluations_until(parent, run.begin)
    if not before:
        return None
    around = [*before, *(e for e in parent.evaluations if e.step > run.begin)]
    return interpolate(around, run.clock.tokens_at(run.begin)) or before[-1]


def thinned(rows: Sequence[Training], most: int = MOST_ROWS) -> list[Training]:
    """The rows, or means over equal groups of neighbours when there are more than `most`."""
    size = math.ceil(len(rows) / most)
    if size <= 1:
        return list(rows)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [
        Training(
            step=group[-1].step,
            tokens=group[-1].tokens,
            loss=sum(row.loss for row in group) / len(group),
            rate=sum(row.rate for row in group) / len(group),
        )
        for group in groups
    ]


def rate_steps(run: RunData, most: int = MOST_RATES) -> list[int]:
    """At most `most` of the run's own updates, with the first and last of each phase."""
    first, last = run.begin, run.total - 1
    edges = {first, last}
    for phase, cut in zip(run.schedule.phases, run.schedule.cuts, strict=True):
        edges |= {step for step in (phase.start, cut - 1) if first <= step <= last}
    stride = max(1, math.ceil((last - first + 1) / max(1, most - len(edges))))
    return sorted(edges | set(range(first, last + 1, stride)))
