"""Compare the runs that a study needs with the run directories; start what is missing."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from llm_pretrain.schedule.schedule import Schedule, schedule_of
from llm_pretrain.study.cost import flops_of
from llm_pretrain.study.expand import Stem
from llm_pretrain.train.directory import change
from llm_pretrain.train.start import check_job

Launch = Callable[[Sequence[Run], ClusterConfig], int]
STARTING = ("start", "continue")
"""Actions that train a run."""
HELD = "study.limits.jobs are under way"
"""Why a run waits that could start."""
_NOT_OURS = ("taken", "unreadable")
"""How a place stands that holds no run of the study."""


@dataclass(frozen=True)
class Standing:
    """How a run from step 0 stands with its branches, and what `apply` would do about it."""

    stem: Stem
    status: str
    action: Action
    branches: tuple[Row, ...]
    reason: str = ""
    steps: Mapping[Path, int] = field(default_factory=dict)
    """The last step that each of these runs has reached, of those that are there."""
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


def statuses(found: Iterable[Standing]) -> list[str]:
    """How every run stands, in a word."""
    return [word for one in found for word in (one.status, *(row.status for row in one.branches))]


def _reasons(found: Iterable[Standing]) -> list[str]:
    return [text for one in found for text in (one.reason, *(row.reason for row in one.branches))]


def under_way(found: Iterable[Standing]) -> int:
    """How many runs wait in a queue or train."""
    return sum(word in ("queued", "running") for word in statuses(found))


def failed(found: Iterable[Standing]) -> bool:
    """Whether a run failed."""
    return "failed" in statuses(found)


def held_back(
    found: Sequence[Standing], jobs: int | None, but: Collection[Path] = ()
) -> list[Standing]:
    """The same, with no more to start than lets `jobs` runs be under way at once: the longest.

    `but`: runs that take no place, as they will not be started. None: no limit.
    """
    if jobs is None:
        return list(found)
    asked = {path: flops for path, flops in _starting(found) if path not in but}
    order = sorted(asked, key=asked.__getitem__, reverse=True)
    held = set(order[max(0, jobs - under_way(found)) :])

    waiting: list[Standing] = []
    for one in found:
        rows = tuple(
            replace(row, action="wait", reason=HELD) if row.branch.path in held else row
            for row in one.branches
        )
        stem = replace(one, action="wait", reason=HELD) if one.stem.path in held else one
        waiting.append(replace(stem, branches=rows))
    return waiting


def _starting(found: Iterable[Standing]) -> Iterator[tuple[Path, int]]:
    """Runs that would start, with their operations."""
    for one in found:
        if one.action in STARTING:
            yield one.stem.path, flops_of(one.stem.config, 0, one.stem.schedule.total)
        for row in one.branches:
            if row.action in STARTING:
                branch = row.branch
                yield branch.path, flops_of(branch.config, branch.start, branch.end)


def check(found: Sequence[Standing], cluster: Callable[[TrainConfig], ClusterConfig]) -> None:
    """Raise UserError, before anything is created, when a run could never start."""
    problems = impossible(found)
    if problems:
        raise UserError("\n".join(problems))
    for standing in found:
        if standing.action == "start":
            check_job(replace(standing.stem.config, cluster=cluster(standing.stem.config)))


def create(found: Sequence[Standing], cluster: Callable[[TrainConfig], ClusterConfig]) -> list[Run]:
    """Give every run that can start now its directory; returns these runs, longest first.

    `cluster`: where a run that has no directory yet, or a branch, will run. Raises UserError before
    anything is created when a run could never start.
    """
    check(found, cluster)
    runs: list[Run] = []
    for standing in found:
        if standing.action in STARTING:
            runs.append(_obtain(standing, cluster))
        if any(row.action in STARTING for row in standing.branches):
            runs += create_branches(Run.open(standing.stem.path), standing.branches)
    return sorted(
        runs, key=lambda run: flops_of(run.config, run.begin, run.record.total), reverse=True
    )


class Starter:
    """Starts runs round by round, each at most once for one command."""

    def __init__(
        self,
        clusters: Callable[[TrainConfig], ClusterConfig],
        launch: Launch,
        jobs: int | None = None,
    ) -> None:
        """`clusters`: where a run's config has it run. `launch`: trains runs, or hands them over;
        the exit code. `jobs`: runs that may be under way at once."""
        self._clusters, self._launch, self._jobs = clusters, launch, jobs
        self._started: set[Path] = set()
        self.waiting = 0
        """Runs that the last round left for another one."""

    def round(self, found: Sequence[Standing]) -> tuple[int, int]:
        """Start what can start now: how many, and the worst exit code. Raises UserError."""
        allowed = held_back(found, self._jobs, self._started)
        self.waiting = sum(reason == HELD for reason in _reasons(allowed))
        runs = [run for run in create(allowed, self._clusters) if run.path not in self._started]
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
    try:
        status = look.status(run)
        changed = changes(run, stem.config, stem.schedule)
        rows = () if changed else tuple(compare(run, stem.branches_of(run.record.id), look))
    except UserError as error:
        return Standing(stem, "unreadable", "impossible", (), str(error))
    if changed:
        reason = f"{stem.path} is another run; move it away ({'; '.join(changed)})"
        return Standing(stem, "taken", "impossible", (), reason)
    return replace(_going_on(stem, run, status, rows), steps=_steps(run, rows, look))


def changes(run: Run, config: TrainConfig, schedule: Schedule) -> list[str]:
    """How a run differs from the one that the study wants in its place, a line each.

    `schedule`: of `config`. A trunk may end elsewhere. Raises UserError when it cannot be read.
    """
    changed = differences(own_trajectory(run.config), own_trajectory(config))
    old = schedule_of(run.config)
    if changed or old == schedule or schedule.prolongs(old):
        return changed
    return [f"schedule: {old.describe()} -> {schedule.describe()}"]


def _steps(trunk: Seen, rows: Sequence[Row], look: Look) -> dict[Path, int]:
    own = [row.branch.path for row in rows if row.status not in ("missing", *_NOT_OURS)]
    return {run.path: run.record.step for run in (trunk, *(look.runs[path] for path in own))}


def _going_on(stem: Stem, run: Seen, status: str, rows: tuple[Row, ...]) -> Standing:
    """How a run that is there goes on, which may have to be prolonged."""
    old, new = schedule_of(run.config), stem.schedule
    prolongs = old.total < new.total or not _plans(run, stem)
    done = not prolongs and status in UNDER_WAY
    if prolongs and status in ("running", "queued"):
        reason = "it has an earlier end or plan; apply again when it has ended"
        return Standing(stem, status, "wait", rows, reason)
    if prolongs and status == "finished" and old.total >= new.total:
        # Nothing is left to train; whether its checkpoints serve the new branches, they say.
        return Standing(stem, status, "none", rows)
    action: Action = "none" if done else "continue"
    return Standing(stem, status, action, rows, prolongs=prolongs)


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
