"""From a run and a spec to the branches that should exist: names, steps and configs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from llm_pretrain.branch.mean import (
    mean_config,
    mean_name,
    mean_steps,
    out_of_reach,
    refuse_training,
)
from llm_pretrain.branch.points import clock_from, points
from llm_pretrain.config.arguments import key_of
from llm_pretrain.config.compose import AUTO, override
from llm_pretrain.config.diff import differences, fingerprint, own_trajectory, trajectory
from llm_pretrain.config.optimizer_rules import check_branches
from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig
from llm_pretrain.config.schema import BranchSpec, RunConfig, Segment, TrainConfig
from llm_pretrain.duration import steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of

_DETAILS = ("floor", "exponent", "half_life", "hold")
"""Of a cooldown, beside length and shape, which names show anyway."""
_FIXED = {
    "model": "the parent's parameters have its shape",
    "data.tokenizer": "the parent learned its tokens",
    "run": "a branch is named after its parent, and keeps its seed",
    "mean_of": "write kind=average",
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

    @property
    def needs(self) -> list[int]:
        """Steps of the parent whose checkpoints it is made from."""
        return self.config.mean_of or [self.start]

    @cached_property
    def path(self) -> Path:
        """Its run directory."""
        return Path(self.config.run.dir)


def planned_steps(config: TrainConfig) -> set[int]:
    """The steps that the plan in a run's own config branches from."""
    found: set[int] = set()
    for spec in config.plan:
        changed = override(config, spec.overrides)
        for start, _ in points(config, changed, spec):
            found |= set(mean_steps(spec, config, start) if spec.kind == "average" else [start])
    return found


def check_plan(config: TrainConfig) -> None:
    """Raise UserError when the plan in a run's own config asks for what cannot be."""
    for i, spec in enumerate(config.plan):
        try:
            expand(Origin(config, "", Path(config.run.dir)), spec)
        except UserError as error:
            raise UserError(f"plan.{i}: {error}") from error


@dataclass(frozen=True)
class Origin:
    """The run that branches start from."""

    config: TrainConfig
    id: str
    path: Path


def expand(origin: Origin, spec: BranchSpec, config_dir: Path | None = None) -> list[Branch]:
    """The branches of `spec` from a run. `config_dir`: the user's own groups, for its overrides.

    Raises UserError when an override touches what cannot change, or the lengths do not fit.
    """
    _refuse_fixed(spec.overrides)
    parent = origin.config
    changed = replace(override(parent, spec.overrides, config_dir), mean_of=[])
    if changed.data.tokenizer != parent.data.tokenizer:
        raise UserError(f"data.tokenizer: a branch cannot change it; {_FIXED['data.tokenizer']}")
    if spec.kind == "average":
        refuse_training(replace(parent, mean_of=[]), changed)
    else:
        check_branches(changed.optimizer, spec.cooldown)
    family = _Family.of(origin, changed, spec)
    return [family.branch(start, end) for start, end in points(parent, changed, spec)]


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
            mean_name(spec, parent)
            if spec.kind == "average"
            else _ending(replace(parent, mean_of=[]), changed, spec),
        )

    def branch(self, start: int, end: int | None) -> Branch:
        """The one from `start` to `end`; None: to where its schedule ends."""
        if start > self.schedule.total:
            return self._beyond(start, end or start)
        if self.spec.kind == "average":
            return self._mean(start)
        draft = self._draft(start, end)
        schedule = schedule_of(draft)
        config = replace(draft, run=self._place(start, schedule.total))
        return self._made(start, schedule.total, config, schedule)

    def _draft(self, start: int, end: int | None) -> TrainConfig:
        """Its config, yet without a name."""
        changed, spec = self.changed, self.spec
        cooldown = CooldownConfig()
        schedule = replace(changed.schedule, cooldown=cooldown, rewarmup=spec.rewarmup)
        if end is not None:
            asked = [o for o in spec.overrides if o.startswith("schedule.total=")]
            clock = clock_from(self.clock, changed, start)
            last = clock.point(changed.schedule.total) if asked and spec.at else end
            kept = clock.length(spec.cooldown.hold, last)
            rise = clock.length(spec.rewarmup, last)
            length, hold = steps(end - start - rise - kept), steps(kept)
            cooldown = replace(spec.cooldown, length=length, hold=hold)
            schedule = replace(schedule, total=steps(last), cooldown=cooldown)
        return replace(changed, schedule=schedule, past=self._past(start), plan=[])

    def _past(self, start: int) -> list[Segment]:
        """The ancestors of a branch from `start`."""
        parent = self.origin.config
        if parent.mean_of:
            # It has trained nothing: what follows it goes on from what it averages.
            return list(parent.past)
        segment = Segment(
            run=self.origin.id,
            until=start,
            lr=parent.optimizer.lr,
            schedule=parent.schedule,
            data=parent.data,
        )
        return [*parent.past, segment]

    def _mean(self, end: int) -> Branch:
        """The one that is a mean of checkpoints up to `end`."""
        parent = self.origin.config
        averaged = mean_steps(self.spec, parent, end)
        problem = out_of_reach(parent, self.origin.path, averaged)
        if problem:
            averaged = [step for step in averaged if step > 0]
        draft = mean_config(self.changed, self._past(end), averaged, end)
        config = replace(draft, run=self._place(end, end))
        return replace(
            self._made(end, end, config, schedule_of(config), problem),
            trajectory=fingerprint(own_trajectory(config)),
        )

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
        key = key_of(text)
        if key == "optimizer.lr" and text.partition("=")[2] == AUTO:
            raise UserError("optimizer.lr=auto: is for whole runs; for a longer horizon use extend")
        for fixed, reason in _FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise UserError(f"{key}: a branch cannot change it; {reason}")
