"""The learning rate of every step of a run and its ancestors, as a list of phases."""

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from llm_pretrain.config.schedule import ScheduleConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.schedule.build import Start, phases_of
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.phase import Array, Phase


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

    def rates(self) -> Array:
        """The learning rate of every update: float64 of shape (total,)."""
        parts = [
            phase.peak * phase.multipliers(cut)
            for phase, cut in zip(self.phases, self.cuts, strict=True)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def cooldown(self) -> Phase | None:
        """The cooldown in which the run ends, if it does."""
        ends = [phase for phase in self.phases[-2:] if phase.kind != "hold"]
        return ends[-1] if ends and ends[-1].kind == "cooldown" else None

    def until(self, step: int) -> "Schedule":
        """The history before `step`; equal for two schedules that differ only later."""
        kept = [
            (_cut_open(p, min(cut, step)), min(cut, step))
            for p, cut in zip(self.phases, self.cuts, strict=True)
            if p.start < step
        ]
        return Schedule(tuple(p for p, _ in kept), tuple(cut for _, cut in kept))

    def describe(self) -> str:
        """One line: 'warmup 0-50, constant 50-300 at 0.001, cooldown 300-375 1-sqrt to 0'."""
        parts = []
        for phase, cut in zip(self.phases, self.cuts, strict=True):
            text = f"{phase.kind} {phase.start}-{cut}"
            if phase.kind in ("constant", "hold"):
                text += f" at {phase.peak * phase.first:g}"
            elif phase.kind == "curve":
                text += f" {phase.shape} at {phase.peak:g}"
            elif phase.kind == "cooldown":
                shape = f"power {phase.parameter:g}" if phase.shape == "power" else phase.shape
                text += f" {shape} to {phase.peak * phase.last:g}"
                text += f" by {phase.end}" if phase.end != cut else ""
            elif phase.kind != "warmup":
                text += f" to {phase.peak * phase.last:g}"
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
        """Whether this is `old` with only the end of its last phase moved.

        True for a trunk that is to end elsewhere; never once a cooldown is involved.
        """
        mine, theirs = self.phases[-1], old.phases[-1]
        return (
            (self.phases[:-1], self.cuts[:-1]) == (old.phases[:-1], old.cuts[:-1])
            and mine.open
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
    if config.mean_of:
        return history
    return _append(history, config.schedule, config.optimizer.lr, clock)


def _append(past: Schedule, config: ScheduleConfig, lr: float, clock: TokenClock) -> Schedule:
    """`past` followed by the phases of `config`. A run with a past has had its warmup."""
    begin = past.total
    start = Start()
    if past.phases:
        start = Start(begin, past.multiplier(begin), past.lr(begin), past.phases[-1])
    return _join(past, phases_of(config, lr, clock, start))


def _join(past: Schedule, phases: Sequence[Phase]) -> Schedule:
    """Append phases, growing one that merely goes on."""
    before, cuts = list(past.phases), list(past.cuts)
    for phase in phases:
        if before and _continues(before[-1], phase):
            before[-1] = replace(before[-1], length=phase.end - before[-1].start)
            cuts[-1] = phase.end
        else:
            before.append(phase)
            cuts.append(phase.end)
    return Schedule(tuple(before), tuple(cuts))


def _cut_open(phase: Phase, cut: int) -> Phase:
    """An open phase that ends at `cut`: what it was to be later has no effect on its rates."""
    return replace(phase, length=cut - phase.start) if phase.open else phase


def _continues(a: Phase, b: Phase) -> bool:
    if a.kind == b.kind == "constant":
        return (a.first, a.peak) == (b.first, b.peak)
    return a.start == b.start
