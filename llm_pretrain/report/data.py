"""What the report knows about a run: plain measurements beside its config and its parent."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from llm_pretrain.config.diff import held_out
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.records import Record
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of

Kind = Literal["trunk", "branch", "cooldown", "average", "scratch"]


@dataclass(frozen=True)
class Evaluation:
    """Loss on the held-out sequences after `step` updates, in nats per token."""

    step: int
    tokens: int
    loss: float
    stderr: float
    average: tuple[str, float] | None = None
    """Which average of the parameters had the smallest loss, and that loss."""


@dataclass(frozen=True)
class Training:
    """A row of training metrics; `rate` is tokens per second since the row before."""

    step: int
    tokens: int
    loss: float
    rate: float


@dataclass(frozen=True, eq=False)
class RunData:
    """A run as the report sees it; steps and tokens count from step 0 of its oldest ancestor."""

    label: str
    """The run's name, with its folder where two runs share a name."""
    path: Path
    record: Record
    status: str
    config: TrainConfig
    evaluations: tuple[Evaluation, ...]
    training: tuple[Training, ...]
    parent: "RunData | None"
    """None for a trunk, and for a branch whose parent is gone."""
    notes: tuple[str, ...] = ()
    """What a reader of the page has to know: unreadable rows, a missing parent."""

    @cached_property
    def schedule(self) -> Schedule:
        """The learning rate of every step."""
        return schedule_of(self.config)

    @cached_property
    def clock(self) -> TokenClock:
        """Steps to tokens."""
        return clock_of(self.config)

    @property
    def begin(self) -> int:
        """First step that the run trains itself."""
        return self.record.parent.step if self.record.parent else 0

    @property
    def total(self) -> int:
        """The step at which the run ends."""
        return self.schedule.total

    @property
    def done(self) -> int:
        """Updates done so far, as far as metrics and record tell."""
        measured = [e.step for e in self.evaluations[-1:]] + [t.step for t in self.training[-1:]]
        return max([self.begin, self.record.step, *measured])

    @property
    def orphan(self) -> bool:
        """Whether this is a branch whose parent was not found."""
        return self.record.parent is not None and self.parent is None

    @property
    def steady_until(self) -> int:
        """The step at which its cooldown starts, or its end when it has none."""
        cooldown = self.schedule.cooldown
        return cooldown.start if cooldown else self.total

    @property
    def steady(self) -> bool:
        """Whether it trains some steps of its own at a constant rate."""
        phases = zip(self.schedule.phases, self.schedule.cuts, strict=True)
        return any(phase.kind == "constant" and cut > self.begin for phase, cut in phases)

    @property
    def kind(self) -> Kind:
        """trunk: from step 0, no cooldown; scratch: from step 0 with one; average: the mean of
        a run's checkpoints; else a branch."""
        cools = self.schedule.cooldown is not None
        if self.record.parent is None:
            return "scratch" if cools else "trunk"
        if self.config.mean_of:
            return "average"
        return "cooldown" if cools else "branch"

    @property
    def is_reference(self) -> bool:
        """Whether it decays from its warmup to its end, as cosine does, on its own."""
        return self.kind == "scratch" and self.config.schedule.cooldown.length == "rest"

    @cached_property
    def held_out(self) -> tuple[Any, ...]:
        """What decides the held-out sequences: equal values, equal sequences."""
        return tuple(held_out(self.config).items())


def lineage(run: RunData) -> list[RunData]:
    """The run and its known ancestors, oldest first."""
    chain = [run]
    while chain[0].parent is not None:
        chain.insert(0, chain[0].parent)
    return chain


def evaluations_until(run: RunData, step: int) -> list[Evaluation]:
    """The evaluations of a run and its ancestors on the path to `step`, in order."""
    before = evaluations_until(run.parent, min(step, run.begin)) if run.parent else []
    return before + [e for e in run.evaluations if e.step <= step]
