"""What a whole study costs: done, left, and against a run from scratch for each result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llm_pretrain.branch.reconcile import Action, Row
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run
from llm_pretrain.study.config import LimitsConfig
from llm_pretrain.study.cost import (
    Speed,
    disk_of,
    estimated_speed,
    flops_of,
    measured_speed,
    tokens_of,
)
from llm_pretrain.study.expand import Stem
from llm_pretrain.study.reconcile import Standing

GIB = 2**30
_HOUR = 3600.0


@dataclass(frozen=True)
class Line:
    """A run of the study: how it stands and what it takes."""

    name: str
    begin: int
    end: int
    """First and last step that it trains itself, in steps of its whole lineage."""
    status: str
    action: Action
    reason: str
    tokens: int
    flops: int
    disk: int
    """Bytes of checkpoints that stay, at most."""
    speed: Speed | None

    @property
    def device_hours(self) -> float | None:
        """Of its own steps, where a speed is known."""
        return None if self.speed is None else self.tokens / self.speed.rate / _HOUR

    @property
    def left(self) -> bool:
        """Whether it is yet to be trained."""
        return self.status != "finished"


@dataclass(frozen=True)
class Budget:
    """The lines of a study and their sums."""

    lines: tuple[Line, ...]
    scratch_flops: int
    """Of training every result from step 0."""
    shared_flops: int
    """Of the runs that share trunks, to the results that the sum above is of."""

    @property
    def flops(self) -> int:
        """Of all runs."""
        return sum(line.flops for line in self.lines)

    @property
    def disk(self) -> int:
        """Bytes of checkpoints that stay, at most."""
        return sum(line.disk for line in self.lines)

    @property
    def starting(self) -> int:
        """Runs that `apply` would start now."""
        return sum(line.action in ("start", "continue") for line in self.lines)

    @property
    def ratio(self) -> float | None:
        """Operations of trunks with their branches, over those from scratch; None without such."""
        return self.shared_flops / self.scratch_flops if self.scratch_flops else None

    def hours(self, *, left: bool) -> float | None:
        """Device-hours of all runs, or of those not yet finished; None where one is unknown."""
        hours = [line.device_hours for line in self.lines if line.left or not left]
        known = [h for h in hours if h is not None]
        return sum(known) if len(known) == len(hours) else None


def budget(found: Sequence[Standing], cluster: Callable[[TrainConfig], ClusterConfig]) -> Budget:
    """Add up a study. Speeds that nothing measured are estimated, which takes seconds a size.

    Raises UserError when a run could not be laid out on its cluster.
    """
    speeds = _Speeds(cluster)
    lines = [line for standing in found for line in _lines(standing, speeds.of(standing))]
    shared = [standing.stem for standing in found if _cooled(standing.stem)]
    return Budget(
        lines=tuple(lines),
        scratch_flops=sum(
            flops_of(stem.config, 0, branch.end) for stem in shared for branch in stem.branches
        ),
        shared_flops=sum(_shared(stem) for stem in shared),
    )


def check_limits(found: Budget, limits: LimitsConfig) -> None:
    """Raise UserError, naming the limit, when the study would exceed one."""
    hours, disk = found.hours(left=True), found.disk / GIB
    if limits.device_hours is not None and (hours is None or hours > limits.device_hours):
        needs = "an unknown number of" if hours is None else f"{hours:,.1f}"
        raise UserError(
            f"study.limits.device_hours: {limits.device_hours:g}, but what is left needs {needs} "
            "device-hours; raise the limit, or take fewer sizes, seeds or horizons"
        )
    if limits.disk is not None and disk > limits.disk:
        raise UserError(
            f"study.limits.disk: {limits.disk:g} GiB, but checkpoints take up to {disk:,.1f} GiB; "
            "raise the limit, or keep fewer with checkpoint.keep_last and keep_every"
        )
    if limits.jobs is not None and found.starting > limits.jobs:
        raise UserError(
            f"study.limits.jobs: {limits.jobs}, but {found.starting} runs would start at once; "
            "raise the limit, or take fewer sizes, seeds or methods"
        )


class _Speeds:
    """Speeds, each looked for once: measured by a run of the size and method, or estimated."""

    def __init__(self, cluster: Callable[[TrainConfig], ClusterConfig]) -> None:
        self._cluster = cluster
        self._measured: dict[tuple[str, str], Speed] = {}
        self._estimated: dict[str, Speed | None] = {}

    def of(self, standing: Standing) -> Speed | None:
        stem = standing.stem
        if standing.status not in ("missing", "taken"):
            measured = measured_speed(Run(stem.path))
            if measured is not None:
                self._measured[stem.size, stem.method] = measured
        known = self._measured.get((stem.size, stem.method))
        return known if known is not None else self._estimate(stem.config)

    def _estimate(self, config: TrainConfig) -> Speed | None:
        config = replace(config, cluster=self._cluster(config))
        # What a speed depends on; the schedule and the seed it does not.
        key = repr((config.model, config.data, config.precision, config.engine, config.cluster))
        key += config.optimizer.name
        if key not in self._estimated:
            self._estimated[key] = estimated_speed(config)
        return self._estimated[key]


def _lines(standing: Standing, speed: Speed | None) -> Iterator[Line]:
    stem = standing.stem
    yield _line(stem.config, 0, stem.schedule.total, standing, speed)
    for row in standing.branches:
        yield _line(row.branch.config, row.branch.start, row.branch.end, row, speed)


def _line(
    config: TrainConfig, begin: int, end: int, state: Standing | Row, speed: Speed | None
) -> Line:
    return Line(
        name=config.run.name,
        begin=begin,
        end=end,
        status=state.status,
        action=state.action,
        reason=state.reason,
        tokens=tokens_of(config, begin, end),
        flops=flops_of(config, begin, end),
        disk=disk_of(config, begin),
        speed=speed,
    )


def _cooled(stem: Stem) -> bool:
    return bool(stem.config.plan)


def _shared(stem: Stem) -> int:
    """Operations of a trunk to its last branch point, and of its branches."""
    last = max(branch.start for branch in stem.branches)
    own = flops_of(stem.config, 0, last)
    return own + sum(flops_of(stem.config, b.start, b.end) for b in stem.branches)
