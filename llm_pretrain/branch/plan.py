"""From a run and a spec to the branches that should exist: names, steps and configs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_pretrain.config.compose import override
from llm_pretrain.config.diff import differences, trajectory
from llm_pretrain.config.schema import BranchSpec, CooldownConfig, Segment, TrainConfig
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import clock_of, schedule_of

_FIXED = {
    "model": "the parent's parameters have its shape",
    "data.tokenizer": "the parent learned its tokens",
    "run": "a branch is named after its parent, and keeps its seed",
    "past": "lineage is written by the branch manager",
    "resume": "a branch is started, not resumed",
    "schedule.warmup": "the parent has had its warmup",
    "schedule.warmup_from": "the parent has had its warmup",
    "schedule.cooldown": "write cooldown.length, cooldown.shape and cooldown.floor",
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
    problem: str | None = None
    """Why it can never start, if it cannot."""

    @property
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
    parent, path = origin.config, origin.path
    changed = override(parent, spec.overrides)
    if changed.data.tokenizer != parent.data.tokenizer:
        raise UserError(f"data.tokenizer: a branch cannot change it; {_FIXED['data.tokenizer']}")
    branches = []
    for start, end in _points(parent, changed, spec):
        until = schedule_of(parent).total
        if start <= until:
            branches.append(_branch(origin, changed, spec, start, end))
            continue
        problem = (
            f"{path} ends at step {until}, before {start}; prolong it: "
            f'llm-pretrain train resume={path} "schedule.total={start} steps"'
        )
        name = _name(origin, changed, start, end or start, spec)
        place = replace(parent.run, name=name, dir=str(path.with_name(name)))
        missing = replace(changed, run=place)
        branches.append(Branch(start, end or start, missing, tuple(spec.overrides), problem))
    return branches


def _points(
    parent: TrainConfig, changed: TrainConfig, spec: BranchSpec
) -> list[tuple[int, int | None]]:
    """(start, end) of each branch in steps; the end is None when no cooldown sets it."""
    clock = clock_of(parent)
    if spec.at:
        starts = [clock.point(at) for at in spec.at]
        return [(s, _end(s, spec.cooldown, _clock_from(clock, changed, s))) for s in starts]
    own = clock_of(changed)
    if own.rates[-1] != clock.rates[-1] and any(e.unit == "tokens" for e in spec.ends):
        raise UserError("ends: horizons in tokens need the parent's batch size; use at=")
    return [(_start(clock.point(e), spec.cooldown, own), clock.point(e)) for e in spec.ends]


def _clock_from(clock: TokenClock, changed: TrainConfig, start: int) -> TokenClock:
    """The clock of a branch that starts at `start` with the batch of `changed`."""
    kept = [i for i, s in enumerate(clock.starts) if s < start]
    rate = changed.data.global_batch * changed.data.sequence_length
    return TokenClock(
        [*(clock.starts[i] for i in kept), start], [*(clock.rates[i] for i in kept), rate]
    )


def _length(cooldown: CooldownConfig, clock: TokenClock, total: int) -> int:
    assert isinstance(cooldown.length, Duration)
    return clock.length(cooldown.length, total)


def _start(end: int, cooldown: CooldownConfig, clock: TokenClock) -> int:
    """Where a branch that ends at `end` starts: the length of its cooldown before."""
    length = _length(cooldown, clock, end)
    if not 0 < length < end:
        raise UserError(
            f"cooldown.length: '{cooldown.length}' is {length} steps, which does not fit into a "
            f"branch that ends at step {end}; use 1 to {end - 1} steps"
        )
    return end - length


def _end(start: int, cooldown: CooldownConfig, clock: TokenClock) -> int | None:
    """Where a branch that cools down from `start` on ends.

    With a percentage p it is floor(start / (1 - p)), the longest run N with N - floor(p N) = start.
    """
    assert isinstance(cooldown.length, Duration)
    if cooldown.length.amount == 0:
        return None
    if cooldown.length.unit != "percent":
        return start + clock.length(cooldown.length, start)
    end = int(start / (1 - cooldown.length.amount / 100))
    if end == start:
        raise UserError(
            f"cooldown.length: '{cooldown.length}' of a run that cools down from step {start} "
            "is less than a step; use a longer cooldown"
        )
    return end


def _branch(
    origin: Origin, changed: TrainConfig, spec: BranchSpec, start: int, end: int | None
) -> Branch:
    parent = origin.config
    segment = Segment(
        run=origin.id,
        until=start,
        lr=parent.optimizer.lr,
        schedule=parent.schedule,
        data=parent.data,
    )
    cooldown = CooldownConfig(shape=spec.cooldown.shape, floor=spec.cooldown.floor)
    schedule = replace(changed.schedule, cooldown=cooldown)
    if end is not None:
        asked = [o for o in spec.overrides if o.startswith("schedule.total=")]
        last = end
        if asked and spec.at:
            last = _clock_from(clock_of(parent), changed, start).point(changed.schedule.total)
        cooldown = replace(cooldown, length=steps(end - start))
        schedule = replace(schedule, total=steps(last), cooldown=cooldown)
    draft = replace(changed, schedule=schedule, past=[*parent.past, segment], plan=[])
    total = schedule_of(draft).total
    name = _name(origin, changed, start, total, spec)
    place = replace(parent.run, name=name, dir=str(origin.path.with_name(name)))
    return Branch(start, total, replace(draft, run=place), tuple(spec.overrides))


def _name(origin: Origin, changed: TrainConfig, start: int, end: int, spec: BranchSpec) -> str:
    """A name that two branches share exactly when they are the same."""
    cooled = spec.cooldown.length != steps(0)
    shape = spec.cooldown.shape if cooled else "constant"
    extras = differences(trajectory(origin.config), trajectory(changed))
    if spec.cooldown.floor and cooled:
        extras.append(f"floor={spec.cooldown.floor}")
    digest = hashlib.sha256("\n".join(extras).encode()).hexdigest()[:6]
    return f"{origin.path.name}.{start}-{end}.{shape}" + (f".{digest}" if extras else "")


def _refuse_fixed(overrides: Sequence[str]) -> None:
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        for fixed, reason in _FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise UserError(f"{key}: a branch cannot change it; {reason}")
