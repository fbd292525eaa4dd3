"""The learning rate of every step of a run and its ancestors, as a list of phases."""

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llm_pretrain.config.schema import CooldownConfig, ScheduleConfig, TrainConfig
from llm_pretrain.duration import Duration
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.shapes import interpolate


@dataclass(frozen=True)
class Phase:
    """A stretch of the schedule; update u in it has progress p = (u - start) / length.

    The multiplier goes from `first` (at p = 0) towards `last`, which the update after the phase
    would have.
    """

    kind: Literal["warmup", "constant", "cooldown"]
    start: int
    length: int
    first: float
    last: float
    shape: str
    peak: float
    """Learning rate that the multiplier multiplies."""

    @property
    def end(self) -> int:
        """First step after the phase."""
        return self.start + self.length

    def multiplier(self, step: int) -> float:
        """The multiplier of the 0-based update `step`, also when the phase was cut short."""
        return interpolate(self.shape, self.first, self.last, (step - self.start) / self.length)


@dataclass(frozen=True)
class Schedule:
    """The whole learning-rate history of a run; a pure function of its config."""

    phases: tuple[Phase, ...]
    cuts: tuple[int, ...]
    """Step at which each phase stops applying: its end, or a branch point before it."""

    @property
    def total(self) -> int:
        """Number of updates from step 0 to the end of the run."""
        return self.cuts[-1] if self.cuts else 0

    def phase_at(self, step: int) -> Phase:
        """The phase of the 0-based update `step`."""
        return self.phases[min(bisect.bisect_right(self.cuts, step), len(self.phases) - 1)]

    def multiplier(self, step: int) -> float:
        """The multiplier of the 0-based update `step`; the run's last value at step = total."""
        return self.phase_at(step).multiplier(step)

    def lr(self, step: int) -> float:
        """The learning rate of the 0-based update `step`."""
        phase = self.phase_at(step)
        return phase.peak * phase.multiplier(step)

    def until(self, step: int) -> "Schedule":
        """The history before `step`; equal for two schedules that differ only later."""
        kept = [
            (_cut_constant(p, min(cut, step)), min(cut, step))
            for p, cut in zip(self.phases, self.cuts, strict=True)
            if p.start < step
        ]
        return Schedule(tuple(p for p, _ in kept), tuple(cut for _, cut in kept))

    def describe(self) -> str:
        """One line: 'warmup 0-50, constant 50-300 at 0.001, cooldown 300-375 1-sqrt to 0'."""
        parts = []
        for phase, cut in zip(self.phases, self.cuts, strict=True):
            text = f"{phase.kind} {phase.start}-{cut}"
            if phase.kind == "constant":
                text += f" at {phase.peak * phase.first:g}"
            elif phase.kind == "cooldown":
                text += f" {phase.shape} to {phase.peak * phase.last:g}"
                text += f" by {phase.end}" if phase.end != cut else ""
            parts.append(text)
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives the same schedule back."""
        return {"phases": [asdict(phase) for phase in self.phases], "cuts": list(self.cuts)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Schedule":
        """The schedule that a checkpoint recorded."""
        return cls(tuple(Phase(**phase) for phase in data["phases"]), tuple(data["cuts"]))

    def prolongs(self, old: "Schedule") -> bool:
        """Whether this is `old` with only the end of its constant phase moved.

        True for a trunk that is to end elsewhere; never once a cooldown is involved.
        """
        mine, theirs = self.phases[-1], old.phases[-1]
        return (
            (self.phases[:-1], self.cuts[:-1]) == (old.phases[:-1], old.cuts[:-1])
            and mine.kind == "constant"
            and replace(mine, length=theirs.length) == theirs
        )

    def fingerprint(self) -> str:
        """A hash that two schedules share exactly when every step has the same rate by design."""
        canonical = json.dumps(self.to_dict())
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def clock_of(config: TrainConfig) -> TokenClock:
    """Tokens per step along the lineage of a run."""
    batches = [s.data for s in config.past] + [config.data]
    return TokenClock(
        starts=[0] + [s.until for s in config.past],
        rates=[d.global_batch * d.sequence_length for d in batches],
    )


def schedule_of(config: TrainConfig) -> Schedule:
    """The schedule of a run: its ancestors' phases up to each branch point, then its own.

    Raises UserError naming the field when the lengths do not fit.
    """
    history = Schedule((), ())
    clock = clock_of(config)
    for i, segment in enumerate(config.past):
        then = TokenClock(clock.starts[: i + 1], clock.rates[: i + 1])
        history = _append(history, segment.schedule, segment.lr, then).until(segment.until)
    return _append(history, config.schedule, config.optimizer.lr, clock)


def cooldown_length(cooldown: CooldownConfig, clock: TokenClock, total: int, earliest: int) -> int:
    """Steps of a cooldown in a run of `total` steps; "rest" begins at step `earliest`."""
    if cooldown.length == "rest":
        return total - earliest
    return clock.length(cooldown.length, total)


def _append(past: Schedule, config: ScheduleConfig, lr: float, clock: TokenClock) -> Schedule:
    """`past` followed by the phases of `config`. A run with a past has had its warmup."""
    total = _point("schedule.total", config.total, clock)
    begin = past.total
    level = past.multiplier(begin) if past.phases else 1.0
    if level <= 0:
        raise UserError(f"at: the parent's learning rate is 0 at step {begin}; branch earlier")
    warmup = 0 if past.phases else clock.length(config.warmup, total)
    if total <= begin:
        raise UserError(f"schedule.total: {config.total} ends at step {total}; needs > {begin}")
    if warmup > total:
        raise UserError(
            f"schedule.warmup: '{config.warmup}' is {warmup} steps, longer than the run of "
            f"{total} steps (schedule.total={config.total}); use at most {total} steps"
        )
    ready = begin + warmup
    cooldown = cooldown_length(config.cooldown, clock, total, ready)
    if cooldown > total - ready:
        raise UserError(
            f"schedule.cooldown.length: '{config.cooldown.length}' is {cooldown} steps, longer "
            f"than the {total - ready} steps of the run after step {ready}; "
            f"use at most {total - ready} steps or a longer schedule.total"
        )
    _check_shape(config.cooldown, level)
    floor = config.cooldown.floor
    phases = [
        Phase("warmup", begin, warmup, config.warmup_from, 1.0, "linear", lr),
        Phase("constant", ready, total - cooldown - ready, level, level, "linear", lr),
        Phase("cooldown", total - cooldown, cooldown, level, floor, config.cooldown.shape, lr),
    ]
    return _join(past, [phase for phase in phases if phase.length > 0])


def _join(past: Schedule, phases: Sequence[Phase]) -> Schedule:
    """Append phases, growing a constant phase that merely goes on."""
    before, cuts = list(past.phases), list(past.cuts)
    for phase in phases:
        if before and _continues(before[-1], phase):
            before[-1] = replace(before[-1], length=phase.end - before[-1].start)
            cuts[-1] = phase.end
        else:
            before.append(phase)
            cuts.append(phase.end)
    return Schedule(tuple(before), tuple(cuts))


def _cut_constant(phase: Phase, cut: int) -> Phase:
    """A constant phase that ends at `cut`: what it was to be later has no effect on its rates."""
    return replace(phase, length=cut - phase.start) if phase.kind == "constant" else phase


def _continues(a: Phase, b: Phase) -> bool:
    return a.kind == b.kind == "constant" and (a.first, a.peak) == (b.first, b.peak)


def _check_shape(cooldown: CooldownConfig, level: float) -> None:
    if cooldown.shape == "exponential" and cooldown.floor <= 0:
        raise UserError(
            "schedule.cooldown.floor: 0 cannot be reached by the shape 'exponential'; "
            "use a floor above 0, such as 0.01"
        )
    if cooldown.length != Duration.parse("0 steps") and cooldown.floor > level:
        raise UserError(
            f"schedule.cooldown.floor: {cooldown.floor:g} is above the multiplier {level:g} at "
            f"the start of the cooldown; use at most {level:g}"
        )


def _point(name: str, position: Duration, clock: TokenClock) -> int:
    try:
        return clock.point(position)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
