"""Compare the branches that should exist with the run directories; start what is missing."""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from llm_pretrain.branch.plan import Branch, Origin, expand
from llm_pretrain.checkpoint.store import CheckpointStore, describe_steps
from llm_pretrain.config.diff import differences, own_trajectory
from llm_pretrain.config.schema import BranchSpec
from llm_pretrain.errors import UserError
from llm_pretrain.provenance import Code
from llm_pretrain.records import Job, Parent, new_record
from llm_pretrain.runs import Run, Seen
from llm_pretrain.schedule.schedule import schedule_of

Predictions = Mapping[Path, Mapping[str, float]]
"""Final loss and its interval, by run directory, as run.json keeps them."""
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


@dataclass(frozen=True)
class Look:
    """What there is of runs at one time; no file is read twice for it."""

    runs: dict[Path, Seen]
    """Those that have a directory, by its path."""
    status: Status

    @classmethod
    def at(cls, places: Iterable[Path]) -> "Look":
        """What there is at these places; a scheduler is asked about runs handed to it."""
        runs = {path: Seen(path) for path in places if Run.exists(path)}
        jobs = [job for job in map(_job, runs.values()) if job is not None]
        if not jobs:
            return cls(runs, lambda run: run.status)
        from launch.queue import Queue  # noqa: PLC0415  (nothing of Slurm for local work)

        return cls(runs, Queue.ask(jobs).status)


def _job(run: Run) -> Job | None:
    """The job that a run was handed to; of one that cannot be read, its status says so."""
    try:
        return run.job
    except UserError:
        return None


def wanted(
    parent: Run, specs: Sequence[BranchSpec], config_dir: Path | None = None
) -> list[Branch]:
    """The branches in the order of the specs; the same one asked for twice is there once.

    `config_dir`: the user's own groups, for their overrides.
    """
    origin = Origin(parent.config, parent.record.id, parent.path)
    branches: dict[str, Branch] = {}
    for spec in specs:
        for branch in expand(origin, spec, config_dir):
            branches.setdefault(str(branch.path), branch)
    return list(branches.values())


def compare(parent: Run, branches: Sequence[Branch], look: Look) -> list[Row]:
    """One row a branch: how it stands, and what `apply` would do about it."""
    steps, record = CheckpointStore(parent.checkpoints).steps(), parent.record
    rows = []
    for branch in branches:
        run = look.runs.get(branch.path)
        if run is None:
            rows.append(_missing(parent, record.begin, steps, branch))
        else:
            rows.append(_existing(run, Parent(record.id, branch.start), branch, look.status))
    return rows


def apply(
    parent: Run, rows: Sequence[Row], predictions: Predictions = MappingProxyType({})
) -> list[Run]:
    """Create the missing run directories; returns the runs that are to be trained now.

    `predictions`: what is written down of the branches that start. Raises UserError before anything
    is created when a branch is impossible, or when the checkpoint of one that would start is
    damaged.
    """
    impossible = [f"{row.branch.path.name}: {row.reason}" for row in rows if _hopeless(row)]
    if impossible:
        raise UserError("\n".join(impossible))
    store = CheckpointStore(parent.checkpoints)
    starting = [row.branch for row in rows if row.action == "start"]
    # The pin comes before the look: retention takes a checkpoint only when it sees no pin.
    needs = [(step, branch.path.name) for branch in starting for step in branch.needs]
    pinned = [(step, child) for step, child in needs if parent.pin(step, child)]
    try:
        for step in sorted({step for step, _ in needs}):
            store.verify(step)
    except UserError:
        for step, child in pinned:
            parent.unpin(step, child)
        raise
    if starting:
        _create(parent, starting, store, predictions)
    return [Run.open(r.branch.path) for r in rows if r.action in ("start", "continue")]


def _missing(parent: Run, begin: int, steps: list[int], branch: Branch) -> Row:
    """`begin`: the parent's first step. `steps`: of its checkpoints, ascending."""
    if branch.problem:
        return Row(branch, "missing", "impossible", branch.problem)
    missing = [step for step in branch.needs if not _has(steps, step)]
    if not missing:
        return Row(branch, "missing", "start")
    if branch.start <= begin:
        return Row(
            branch,
            "missing",
            "impossible",
            f"{parent.path} begins at step {begin}; branch from its parent instead",
        )
    reached = max([begin, *steps[-1:]])
    # Of several, the first decides: what is behind the run will never be saved any more.
    step = missing[0]
    nearest = describe_steps(steps, near=step)
    if step > reached:
        reason = f"{parent.path} is at step {reached}, not yet at {step}; {nearest}"
        return Row(branch, "missing", "wait", reason)
    reason = f"{parent.path} has no checkpoint at step {step}; {nearest}"
    return Row(branch, "missing", "impossible", reason)


def _has(steps: list[int], step: int) -> bool:
    place = bisect.bisect_left(steps, step)
    return steps[place : place + 1] == [step]


def _existing(run: Seen, link: Parent, branch: Branch, status: Status) -> Row:
    try:
        changed = _differences(run, branch)
        if not changed and run.record.parent != link:
            changed = ["lineage"]
        word = status(run)
    except UserError as error:
        return Row(branch, "unreadable", "impossible", str(error))
    if changed:
        reason = f"{branch.path} is another run; move it away ({'; '.join(changed)})"
        return Row(branch, "taken", "impossible", reason)
    return Row(branch, word, "none" if word in UNDER_WAY else "continue")


def _differences(run: Seen, branch: Branch) -> list[str]:
    """How a run differs from the branch in whose place it is, but for its parent."""
    noted, meant = run.fingerprints, (branch.trajectory, branch.schedule.fingerprint())
    if noted and (noted.trajectory, noted.schedule) == meant:
        return []
    # Others are not always of another run, but it takes the configs to tell.
    changed = differences(own_trajectory(run.config), own_trajectory(branch.config))
    return changed or ([] if schedule_of(run.config) == branch.schedule else ["lineage"])


def _hopeless(row: Row) -> bool:
    return row.action == "impossible"


def _create(
    parent: Run, branches: Sequence[Branch], store: CheckpointStore, predictions: Predictions
) -> None:
    link, code = parent.record.id, Code.current()
    for branch in branches:
        record = new_record(
            branch.path.name,
            total=branch.end,
            overrides=branch.overrides,
            parent=Parent(link, branch.start),
            parent_dir=f"../{parent.path.name}",
            parent_checkpoint=store.identity(branch.start),
            prediction=predictions.get(branch.path),
            code=code,
        )
        Run.create(branch.config, record, parent.tokenizer_path)
