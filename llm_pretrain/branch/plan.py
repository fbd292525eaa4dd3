"""From a run and a spec to the branches that should exist: names, steps and configs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from llm_pretrain.config.compose import AUTO, override
from llm_pretrain.config.diff import differences, fingerprint, own_trajectory, trajectory
from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig
from llm_pretrain.config.schema import BranchSpec, RunConfig, Segment, TrainConfig
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of

_DETAILS = ("floor", "exponent", "half_life", "hold")
"""Of a cooldown, beside length and shape, which names show anyway."""
_FIXED = {
    "model": "the parent's parameters have its shape",
    "data.tokenizer": "the parent learned its tokens",
    "run": "a branch is named after its parent, and keeps its seed",
    "past": "lineage is written by the branch manager",
    "resume": "a branch is started, not resumed",
    "schedule.warmup": "the parent has had its warmup",
    "schedule.warmup_from": "the parent has had its warmup",
    "schedule.cooldown": "write cooldown.length, cooldown.shape and so on",
    "schedule.rewarmup": "write rewarmup",
}


@dataclass(frozen=True)
class Branch:
    """A branch that should exist."""

    start: int
    """Updates that the parent has done at the branch point."""
    end: int
    """Last step of the branch."""
    config: TrainConfig
    overrides: tuple[str, ...]
    schedule: Schedule
    """Of `config`."""
    trajectory: str
    """Fingerprint of what else decides its parameters, as runs note it."""
    problem: str | None = None
    """Why it can never start, if it cannot."""

    @cached_property
    def path(self) -> Path:
        """Its run directory."""
        return Path(self.config.run.dir)


def planned_steps(config: TrainConfig) -> set[int]:
    """The steps that the plan in a run's own config branches from."""
    points: set[int] = set()
    for spec in config.plan:
        changed = override(config, spec.overrides)
        points |= {start for start, _ in _points(config, changed, spec)}
    return points


def check_plan(config: TrainConfig) -> None:
    """Raise UserError when the plan in a run's own config asks for what cannot be."""
    for spec in config.plan:
        expand(Origin(config, "", Path(config.run.dir)), spec)


@dataclass(frozen=True)
class Origin:
    """The run that branches start from."""

    config: TrainConfig
    id: str
    path: Path


def expand(origin: Origin, spec: BranchSpec) -> list[Branch]:
    """The branches of `spec` from a run.

    Raises UserError when an override touches what cannot change, or the lengths do not fit.
    """
    _refuse_fixed(spec.overrides)
    parent = origin.config
    changed = override(parent, spec.overrides)
    if changed.data.tokenizer != parent.data.tokenizer:
        raise UserError(f"data.tokenizer: a branch cannot change it; {_FIXED['data.tokenizer']}")
    family = _Family.of(origin, changed, spec)
    return [family.branch(start, end) for start, end in _points(parent, changed, spec)]


@dataclass(frozen=True)
class _Family:
    """What the branches of a spec have in common, so that a thousand cost little more than one."""

    origin: Origin
    spec: BranchSpec
    changed: TrainConfig
    """The parent's config with the overrides."""
    clock: TokenClock
    """The parent's."""
    schedule: Schedule
    """The parent's."""
    trajectory: str
    ending: str
    """The part of the names behind the steps: shape, and a hash of what else differs."""

    @classmethod
    def of(cls, origin: Origin, changed: TrainConfig, spec: BranchSpec) -> "_Family":
        """The branches that have the config `changed`, but for what depends on their steps."""
        parent = origin.config
        return cls(
            origin,
            spec,
            changed,
            clock_of(parent),
            schedule_of(parent),
            fingerprint(own_trajectory(changed)),
            _ending(parent, changed, spec),
        )

    def branch(self, start: int, end: int | None) -> Branch:
        """The one from `start` to `end`; None: to where its schedule ends."""
        if start > self.schedule.total:
            return self._beyond(start, end or start)
        draft = self._draft(start, end)
        schedule = schedule_of(draft)
        config = replace(draft, run=self._place(start, schedule.total))
        return self._made(start, schedule.total, config, schedule)

    def _draft(self, start: int, end: int | None) -> TrainConfig:
        """Its config, yet without a name."""
        parent, changed, spec = self.origin.config, self.changed, self.spec
        segment = Segment(
            run=self.origin.id,
            until=start,
            lr=parent.optimizer.lr,
            schedule=parent.schedule,
            data=parent.data,
        )
        cooldown = CooldownConfig()
        schedule = replace(changed.schedule, cooldown=cooldown, rewarmup=spec.rewarmup)
        if end is not None:
            asked = [o for o in spec.overrides if o.startswith("schedule.total=")]
            clock = _clock_from(self.clock, changed, start)
            last = clock.point(changed.schedule.total) if asked and spec.at else end
            kept = clock.length(spec.cooldown.hold, last)
            rise = clock.length(spec.rewarmup, last)
            length, hold = steps(end - start - rise - kept), steps(kept)
            cooldown = replace(spec.cooldown, length=length, hold=hold)
            schedule = replace(schedule, total=steps(last), cooldown=cooldown)
        return replace(changed, schedule=schedule, past=[*parent.past, segment], plan=[])

    def _beyond(self, start: int, end: int) -> Branch:
        """One that the parent is too short for."""
        path = self.origin.path
        problem = (
            f"{path} ends at step {self.schedule.total}, before {start}; prolong it: "
            f'llm-pretrain train resume={path} "schedule.total={start} steps"'
        )
        config = replace(self.changed, run=self._place(start, end))
        return self._made(start, end, config, schedule_of(config), problem)

    def _made(
        self, start: int, end: int, config: TrainConfig, rates: Schedule, problem: str | None = None
    ) -> Branch:
        overrides = tuple(self.spec.overrides)
        return Branch(start, end, config, overrides, rates, self.trajectory, problem)

    def _place(self, start: int, end: int) -> RunConfig:
        """Name and directory, which two branches share exactly when they are the same."""
        path = self.origin.path
        name = f"{path.name}.{start}-{end}.{self.ending}"
        return replace(self.origin.config.run, name=name, dir=str(path.with_name(name)))


def _points(
    parent: TrainConfig, changed: TrainConfig, spec: BranchSpec
) -> list[tuple[int, int | None]]:
    """(start, end) of each branch in steps; the end is None when no cooldown sets it."""
    clock = clock_of(parent)
    if spec.at:
        starts = [clock.point(at) for at in spec.at]
        return [(s, _end(s, spec, _clock_from(clock, changed, s))) for s in starts]
    own = clock_of(changed)
    if own.rates[-1] != clock.rates[-1] and any(e.unit == "tokens" for e in spec.ends):
        raise UserError("ends: horizons in tokens need the parent's batch size; use at=")
    return [(_start(clock.point(e), spec, own), clock.point(e)) for e in spec.ends]


def _clock_from(clock: TokenClock, changed: TrainConfig, start: int) -> TokenClock:
    """The clock of a branch that starts at `start` with the batch of `changed`."""
    kept = [i for i, s in enumerate(clock.starts) if s < start]
    rate = changed.data.global_batch * changed.data.sequence_length
    return TokenClock(
        [*(clock.starts[i] for i in kept), start], [*(clock.rates[i] for i in kept), rate]
    )


def _start(end: int, spec: BranchSpec, clock: TokenClock) -> int:
    """Where a branch that ends at `end` starts: all that it does by itself before."""
    cooldown = spec.cooldown
    assert isinstance(cooldown.length, Duration)
    length = clock.length(cooldown.length, end)
    if not 0 < length < end:
        raise UserError(
            f"cooldown.length: '{cooldown.length}' is {length} steps, which does not fit into a "
            f"branch that ends at step {end}; use 1 to {end - 1} steps"
        )
    start = end - length - _besides(spec, clock, end)
    if start <= 0:
        raise UserError(
            f"ends: the cooldown, its hold and rewarmup of a branch that ends at step {end} are "
            f"{end - start} steps; use less than {end}"
        )
    return start


def _end(start: int, spec: BranchSpec, clock: TokenClock) -> int | None:
    """Where a branch that cools down from `start` on ends.

    With a percentage p it is floor(start / (1 - p)), the longest run N with N - floor(p N) = start,
    where rewarmup and hold count as a part of `start`.
    """
    cooldown = spec.cooldown
    assert isinstance(cooldown.length, Duration)
    if cooldown.length.amount == 0:
        return None
    before = start + _besides(spec, clock, start)
    if cooldown.length.unit != "percent":
        return before + clock.length(cooldown.length, start)
    end = int(before / (1 - cooldown.length.amount / 100))
    if end == before:
        raise UserError(
            f"cooldown.length: '{cooldown.length}' of a run that cools down from step {start} "
            "is less than a step; use a longer cooldown"
        )
    return end


def _besides(spec: BranchSpec, clock: TokenClock, whole: int) -> int:
    """Steps of a branch that are not its cooldown."""
    return clock.length(spec.rewarmup, whole) + clock.length(spec.cooldown.hold, whole)


def _ending(parent: TrainConfig, changed: TrainConfig, spec: BranchSpec) -> str:
    cooled = spec.cooldown.length != steps(0)
    extras = differences(trajectory(parent), trajectory(changed))
    extras += differences(_main(parent), _main(changed))
    plain, asked = _plain(CooldownConfig()), _plain(spec.cooldown)
    if cooled:
        extras += [f"{name}={asked[name]}" for name in _DETAILS if asked[name] != plain[name]]
    if spec.rewarmup.amount:
        extras.append(f"rewarmup={spec.rewarmup}")
    digest = hashlib.sha256("\n".join(extras).encode()).hexdigest()[:6]
    shape = spec.cooldown.shape if cooled else "constant"
    return f"{shape}.{digest}" if extras else shape


def _main(config: TrainConfig) -> dict[str, Any]:
    """What a schedule does besides to begin, to cool down and to end."""
    fields = _plain(config.schedule)
    return {name: fields[name] for name in ("main", "stages", "timescale", "function", "inclusive")}


def _plain(part: CooldownConfig | ScheduleConfig) -> dict[str, Any]:
    values: dict[str, Any] = TypeAdapter(type(part)).dump_python(part, mode="json")
    return values


def _refuse_fixed(overrides: Sequence[str]) -> None:
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        if key == "optimizer.lr" and value == AUTO:
            raise UserError("optimizer.lr=auto: is for whole runs; for a longer horizon use extend")
        for fixed, reason in _FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise UserError(f"{key}: a branch cannot change it; {reason}")
