"""Compare the branches that should exist with the run directories; start what is missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_pretrain.branch.plan import Branch, Origin, expand
from llm_pretrain.checkpoint.store import CheckpointStore, describe_steps
from llm_pretrain.config.diff import differences, trajectory
from llm_pretrain.config.schema import BranchSpec
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Parent, Run, new_record
from llm_pretrain.schedule.schedule import schedule_of

Action = Literal["none", "start", "continue", "wait", "impossible"]


@dataclass(frozen=True)
class Row:
    """A branch, how it stands, and what `apply` would do about it."""

    branch: Branch
    status: str
    action: Action
    reason: str = ""


UNDER_WAY = ("finished", "running", "queued")
"""How a run stands that needs nobody to start it."""
Status = Callable[[Run], str]
"""How a run stands; the caller may know more of it than its directory says."""


def wanted(parent: Run, specs: Sequence[BranchSpec]) -> list[Branch]:
    """The branches in the order of the specs; the same one asked for twice is there once."""
    origin = Origin(parent.config, parent.record.id, parent.path)
    branches: dict[str, Branch] = {}
    for spec in specs:
        for branch in expand(origin, spec):
            branches.setdefault(str(branch.path), branch)
    return list(branches.values())


def compare(parent: Run, branches: Sequence[Branch], status: Status) -> list[Row]:
    """One row a branch: how it stands, and what `apply` would do about it."""
    steps = CheckpointStore(parent.checkpoints).steps()
    return [_row(parent, steps, branch, status) for branch in branches]


def apply(parent: Run, rows: Sequence[Row]) -> list[Run]:
    """Create the missing run directories; returns the runs that are to be trained now.

    Raises UserError before anything is created when a branch is impossible, or when the checkpoint
    of one that would start is damaged.
    """
    impossible = [f"{row.branch.path.name}: {row.reason}" for row in rows if _hopeless(row)]
    if impossible:
        raise UserError("\n".join(impossible))
    store = CheckpointStore(parent.checkpoints)
    starting = [row.branch for row in rows if row.action == "start"]
    # The pin comes before the look: retention takes a checkpoint only when it sees no pin.
    pinned = [branch for branch in starting if parent.pin(branch.start, branch.path.name)]
    try:
        for step in sorted({branch.start for branch in starting}):
            store.verify(step)
    except UserError:
        for branch in pinned:
            parent.unpin(branch.start, branch.path.name)
        raise
    for branch in starting:
        _create(parent, store, branch)
    return [Run.open(r.branch.path) for r in rows if r.action in ("start", "continue")]


def _row(parent: Run, steps: list[int], branch: Branch, status: Status) -> Row:
    if Run.exists(branch.path):
        return _existing(parent, branch, status)
    if branch.problem:
        return Row(branch, "missing", "impossible", branch.problem)
    if branch.start in steps:
        return Row(branch, "missing", "start")
    if branch.start <= parent.begin:
        return Row(
            branch,
            "missing",
            "impossible",
            f"{parent.path} begins at step {parent.begin}; branch from its parent instead",
        )
    reached = max([parent.begin, *steps])
    nearest = describe_steps(steps, near=branch.start)
    if branch.start > reached:
        reason = f"{parent.path} is at step {reached}, not yet at {branch.start}; {nearest}"
        return Row(branch, "missing", "wait", reason)
    reason = f"{parent.path} has no checkpoint at step {branch.start}; {nearest}"
    return Row(branch, "missing", "impossible", reason)


def _existing(parent: Run, branch: Branch, status: Status) -> Row:
    run = Run.open(branch.path)
    # The parent's own config may have changed since in ways that leave its past as it is, such as
    # a later end; the ancestors are compared by id, step and schedule.
    plain = {"past": None}
    changed = differences(trajectory(run.config) | plain, trajectory(branch.config) | plain)
    same_schedule = schedule_of(run.config) == schedule_of(branch.config)
    if run.record.parent != Parent(parent.record.id, branch.start) or changed or not same_schedule:
        reason = f"{branch.path} is another run; move it away ({'; '.join(changed) or 'lineage'})"
        return Row(branch, "taken", "impossible", reason)
    word = status(run)
    return Row(branch, word, "none" if word in UNDER_WAY else "continue")


def _hopeless(row: Row) -> bool:
    return row.action == "impossible"


def _create(parent: Run, store: CheckpointStore, branch: Branch) -> None:
    record = new_record(
        branch.path.name,
        total=branch.end,
        overrides=branch.overrides,
        parent=Parent(parent.record.id, branch.start),
        parent_dir=f"../{parent.path.name}",
        parent_checkpoint=store.identity(branch.start),
    )
    Run.create(branch.config, record, parent.tokenizer_path)
