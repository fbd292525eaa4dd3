"""Compare the runs that a study needs with the run directories; start what is missing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_pretrain.branch.plan import planned_steps
from llm_pretrain.branch.reconcile import UNDER_WAY, Action, Look, Row, compare
from llm_pretrain.branch.reconcile import apply as create_branches
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.diff import differences, own_trajectory
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_CONTINUE, EXIT_OK, UserError
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run, Seen
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.study.cost import flops_of
from llm_pretrain.study.expand import Stem
from llm_pretrain.train.directory import change
from llm_pretrain.train.start import check_job

Launch = Callable[[Sequence[Run], ClusterConfig], int]


@dataclass(frozen=True)
class Standing:
    """How a run from step 0 stands with its branches, and what `apply` would do about it."""

    stem: Stem
    status: str
    action: Action
    branches: tuple[Row, ...]
    reason: str = ""
    prolongs: bool = False
    """Whether its directory has to be given a later end, or other branches to save for."""


def survey(stems: Sequence[Stem]) -> list[Standing]:
    """One entry a run from step 0, in their order; a scheduler is asked once for all."""
    look = Look.at([p for stem in stems for p in (stem.path, *(b.path for b in stem.branches))])
    return [_standing(stem, look) for stem in stems]


def impossible(found: Iterable[Standing]) -> list[str]:
    """What keeps a study from ever being complete, a line each."""
    lines = []
    for standing in found:
        if standing.action == "impossible":
            lines.append(f"{standing.stem.path.name}: {standing.reason}")
        rows = [row for row in standing.branches if row.action == "impossible"]
        lines += [f"{row.branch.path.name}: {row.reason}" for row in rows]
    return lines


def create(found: Sequence[Standing], cluster: Callable[[TrainConfig], ClusterConfig]) -> list[Run]:
    """Give every run that can start now its directory; returns these runs, longest first.

    `cluster`: where a run that has no directory yet, or a branch, will run. Raises UserError before
    anything is created when a run could never start.
    """
    problems = impossible(found)
    if problems:
        raise UserError("\n".join(problems))
    for standing in found:
        if standing.action == "start":
            check_job(replace(standing.stem.config, cluster=cluster(standing.stem.config)))
    runs: list[Run] = []
    for standing in found:
        if standing.action in ("start", "continue"):
            runs.append(_obtain(standing, cluster))
        if any(row.action in ("start", "continue") for row in standing.branches):
            runs += create_branches(Run.open(standing.stem.path), standing.branches)
    return sorted(
        runs, key=lambda run: flops_of(run.config, run.begin, run.record.total), reverse=True
    )


class Starter:
    """Starts runs round by round, each at most once for one command."""

    def __init__(self, clusters: Callable[[TrainConfig], ClusterConfig], launch: Launch) -> None:
        """`clusters`: where a run's config has it run. `launch`: trains runs, or hands them over;
        the exit code."""
        self._clusters, self._launch = clusters, launch
        self._started: set[Path] = set()

    def round(self, found: Sequence[Standing]) -> tuple[int, int]:
        """Start what can start now: how many, and the worst exit code. Raises UserError."""
        runs = [run for run in create(found, self._clusters) if run.path not in self._started]
        self._started |= {run.path for run in runs}
        groups: dict[str, tuple[ClusterConfig, list[Run]]] = {}
        for run in runs:
            cluster = self._clusters(run.config)
            groups.setdefault(repr(cluster), (cluster, []))[1].append(run)
        worst = EXIT_OK
        for cluster, group in groups.values():
            worst = max(worst, self._launch(group, cluster))
            if worst == EXIT_CONTINUE:
                break
        return len(runs), worst


def _standing(stem: Stem, look: Look) -> Standing:
    run = look.runs.get(stem.path)
    if run is None:
        waiting = [
            Row(branch, "missing", "wait", f"{stem.path.name} has not been started")
            for branch in stem.branches
        ]
        return Standing(stem, "missing", "start", tuple(waiting))
    status = look.status(run)
    changed = differences(own_trajectory(run.config), own_trajectory(stem.config))
    old, new = schedule_of(run.config), stem.schedule
    if not changed and not (old == new or new.prolongs(old)):
        changed = [f"schedule: {old.describe()} -> {new.describe()}"]
    if changed:
        reason = f"{stem.path} is another run; move it away ({'; '.join(changed)})"
        return Standing(stem, "taken", "impossible", (), reason)
    rows = compare(run, stem.branches_of(run.record.id), look)
    prolongs = old.total < new.total or not _plans(run, stem)
    done = not prolongs and status in UNDER_WAY
    if prolongs and status in ("running", "queued"):
        reason = "it has an earlier end or plan; apply again when it has ended"
        return Standing(stem, status, "wait", tuple(rows), reason)
    if prolongs and status == "finished" and old.total >= new.total:
        # Nothing is left to train; whether its checkpoints serve the new branches, they say.
        return Standing(stem, status, "none", tuple(rows))
    action: Action = "none" if done else "continue"
    return Standing(stem, status, action, tuple(rows), prolongs=prolongs)


def _plans(run: Seen, stem: Stem) -> bool:
    """Whether the run keeps every checkpoint that the branches wanted now start from."""
    if all(spec in run.config.plan for spec in stem.config.plan):
        return True
    return planned_steps(stem.config) <= planned_steps(run.config)


def _obtain(standing: Standing, cluster: Callable[[TrainConfig], ClusterConfig]) -> Run:
    """The directory of a run that will be trained, with its newest end and plan."""
    stem = standing.stem
    if standing.action == "start":
        config = replace(stem.config, cluster=cluster(stem.config))
        record = new_record(config.run.name, total=stem.schedule.total)
        return Run.create(config, record)
    run = Run.open(stem.path)
    if standing.prolongs:
        old = run.config
        later = stem.schedule.total >= schedule_of(old).total
        schedule = stem.config.schedule if later else old.schedule
        change(run, replace(old, schedule=schedule, plan=stem.config.plan))
    return Run.open(stem.path)
