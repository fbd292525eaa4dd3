"""What a whole study costs: done, left, and against a run from scratch for each result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_pretrain.branch.reconcile import Action, Row
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run
from llm_pretrain.scaling.counting import Counting
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
from llm_pretrain.study.reconcile import HELD, STARTING, Standing

GIB = 2**30
_DIGITS = 100
"""From here on, a number has three digits before its point."""


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
    tokens_left: int
    """Of the steps that it has not reached yet."""
    flops: int
    disk: int
    """Bytes of checkpoints that stay, at most."""
    speed: Speed | None

    @property
    def device_hours(self) -> float | None:
        """Of its own steps, where a speed is known."""
        return None if self.speed is None else self.speed.hours(self.tokens)

    @property
    def left(self) -> bool:
        """Whether any of it is yet to be trained."""
        return self.status != "finished" or self.tokens_left > 0


@dataclass(frozen=True)
class Reuse:
    """Operations of the results of one name."""

    needed: int
    """Of trunks to their last branch point, and of the branches."""
    scratch: int
    """Of training each of these results from step 0."""

    @property
    def ratio(self) -> float:
        """Those needed, over those from scratch."""
        return self.needed / self.scratch


@dataclass(frozen=True)
class Budget:
    """The lines of a study and their sums."""

    lines: tuple[Line, ...]
    reuse: dict[str, Reuse]
    """By the name of the cooldowns: of several shapes, each could have the trunks to itself."""

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
        return sum(line.action in STARTING for line in self.lines)

    @property
    def held(self) -> int:
        """Runs that could start now but for study.limits.jobs."""
        return sum(line.reason == HELD for line in self.lines)

    def hours(self, *, left: bool) -> float | None:
        """Device-hours of all runs, or of the steps still to be trained; None where one is unknown.

        A run that continues begins at its last checkpoint, so a little may be trained again.
        """
        total = 0.0
        for line in self.lines:
            tokens = line.tokens_left if left else line.tokens
            if tokens and line.speed is None:
                return None
            total += line.speed.hours(tokens) if line.speed else 0.0
        return total


def budget(
    found: Sequence[Standing],
    cluster: Callable[[TrainConfig], ClusterConfig],
    counting: Counting | None = None,
) -> Budget:
    """Add up a study. Speeds that nothing measured are estimated, which takes seconds a size.

    Raises UserError when a run could not be laid out on its cluster.
    """
    speeds, causal = _Speeds(cluster), (counting or Counting()).attention == "causal"
    return Budget(
        lines=tuple(
            line for standing in found for line in _lines(standing, speeds.of(standing), causal)
        ),
        reuse=reuse([standing.stem for standing in found], causal=causal),
    )


def reuse(stems: Sequence[Stem], *, causal: bool = False) -> dict[str, Reuse]:
    """What sharing trunks saves, by the name of the cooldowns."""
    found: dict[str, Reuse] = {}
    for stem in stems:
        for label in stem.cooldowns:
            own = _reuse(stem, label, causal)
            sofar = found.get(label, Reuse(0, 0))
            found[label] = Reuse(sofar.needed + own.needed, sofar.scratch + own.scratch)
    return found


def check_limits(found: Budget, limits: LimitsConfig) -> None:
    """Raise UserError, naming the limit, when the study would exceed one."""
    hours, disk = found.hours(left=True), found.disk / GIB
    if limits.device_hours is not None and (hours is None or hours > limits.device_hours):
        needs = "an unknown number of" if hours is None else amount(hours)
        raise UserError(
            f"study.limits.device_hours: {limits.device_hours:g}, but what is left needs {needs} "
            "device-hours; raise the limit, or take fewer sizes, seeds or horizons"
        )
    if limits.disk is not None and disk > limits.disk:
        raise UserError(
            f"study.limits.disk: {limits.disk:g} GiB, but checkpoints take up to {amount(disk)} "
            "GiB; raise the limit, or keep fewer with checkpoint.keep_last and keep_every"
        )


def amount(value: float) -> str:
    """Hours or GiB, three digits at least.

    >>> amount(0.000412), amount(12345.6)
    ('0.000412', '12,346')
    """
    return f"{value:,.0f}" if value >= _DIGITS else f"{value:.3g}"


class _Speeds:
    """Speeds, each looked for once: measured by a run of the size and method, or estimated."""

    def __init__(self, cluster: Callable[[TrainConfig], ClusterConfig]) -> None:
        self._cluster = cluster
        self._measured: dict[tuple[str, str], Speed] = {}
        self._estimated: dict[str, Speed | None] = {}

    def of(self, standing: Standing) -> Speed | None:
        stem = standing.stem
        if stem.path in standing.steps:
            measured = measured_speed(Run(stem.path))
            if measured is not None:
                self._measured[stem.size, stem.method] = measured
        known = self._measured.get((stem.size, stem.method))
        return known if known is not None else self._estimate(stem.config)

    def _estimate(self, config: TrainConfig) -> Speed | None:
        config = replace(config, cluster=self._cluster(config))
        # What a speed depends on; the schedule, the seed and the text it does not.
        batch = (config.data.sequence_length, config.data.global_batch, config.data.micro_batch)
        key = repr((config.model, batch, config.precision, config.engine, config.cluster))
        key += repr((config.optimizer.name, config.optimizer.project, config.average.every))
        if key not in self._estimated:
            self._estimated[key] = estimated_speed(config)
        return self._estimated[key]


def _lines(standing: Standing, speed: Speed | None, causal: bool) -> Iterator[Line]:
    stem = standing.stem
    runs: list[tuple[TrainConfig, int, int, Standing | Row]] = [
        (stem.config, 0, stem.schedule.total, standing),
        *((row.branch.config, row.branch.start, row.branch.end, row) for row in standing.branches),
    ]
    for config, begin, end, state in runs:
        reached = standing.steps.get(Path(config.run.dir), 0)
        yield Line(
            name=config.run.name,
            begin=begin,
            end=end,
            status=state.status,
            action=state.action,
            reason=state.reason,
            tokens=tokens_of(config, begin, end),
            tokens_left=tokens_of(config, min(max(begin, reached), end), end),
            flops=flops_of(config, begin, end, causal=causal),
            disk=disk_of(config, begin),
            speed=speed,
        )


def _reuse(stem: Stem, label: str, causal: bool) -> Reuse:
    """Of the cooldowns of one trunk."""
    runs = {result.run for result in stem.results if result.label == label}
    branches = [branch for branch in stem.branches if branch.path in runs]
    last = max(branch.start for branch in branches)
    own = [flops_of(stem.config, b.start, b.end, causal=causal) for b in branches]
    whole = [flops_of(stem.config, 0, b.end, causal=causal) for b in branches]
    return Reuse(flops_of(stem.config, 0, last, causal=causal) + sum(own), sum(whole))
