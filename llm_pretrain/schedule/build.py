"""From a ScheduleConfig to the phases that a run adds to those of its ancestors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule import shapes
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.phase import Phase


@dataclass(frozen=True)
class Start:
    """Where a run takes over from its ancestors; step 0 of a run without any."""

    step: int = 0
    multiplier: float = 1.0
    rate: float = 0.0
    """Learning rate that the next update of the ancestors would have had."""
    last: Phase | None = None
    """Their last phase."""


@dataclass(frozen=True)
class _Lengths:
    """Where the parts of a schedule begin, in steps."""

    ready: int
    """End of warmup."""
    fall: int
    """Start of the cooldown."""
    hold: int
    """End of the cooldown's formula."""
    total: int


def phases_of(config: ScheduleConfig, lr: float, clock: TokenClock, start: Start) -> list[Phase]:
    """The phases of a run from `start` on. One that goes on where the ancestors' last phase left
    off has the same start as that one.

    `lr`: peak learning rate. Raises UserError naming the field when the lengths do not fit.
    """
    lengths = _lengths(config, clock, start)
    climb = _climb(config, lr, lengths.ready, start)
    level = start.multiplier if start.last and not climb else 1.0
    if level <= 0 and config.main != "function":
        raise UserError(
            f"at: the parent's learning rate is 0 at step {start.step}; branch earlier, or ask "
            "for rewarmup"
        )
    main = _main(config, lr, clock, lengths, replace(start, multiplier=level))
    if config.main == "function" and lengths.fall < lengths.total:
        level = shapes.function(str(config.function))(lengths.fall)
    elif main and config.main != "function":
        level = main[-1].multiplier(lengths.fall)
    return [*climb, *main, *_end(config, lr, clock, lengths, level)]


def cooldown_length(cooldown: CooldownConfig, clock: TokenClock, total: int, earliest: int) -> int:
    """Updates of a cooldown in a run of `total` steps; "rest" begins at step `earliest`."""
    if cooldown.length == "rest":
        return total - earliest - clock.length(cooldown.hold, total)
    return clock.length(cooldown.length, total)


def _lengths(config: ScheduleConfig, clock: TokenClock, start: Start) -> _Lengths:
    total = _point("schedule.total", config.total, clock)
    begin = start.step
    if total <= begin:
        raise UserError(f"schedule.total: {config.total} ends at step {total}; needs > {begin}")
    name = "rewarmup" if start.last else "warmup"
    length: Duration = getattr(config, name)
    climb = clock.length(length, total)
    if climb > total - begin:
        raise UserError(
            f"schedule.{name}: '{length}' is {climb} steps, longer than the run of "
            f"{total - begin} steps (schedule.total={config.total}); use at most "
            f"{total - begin} steps"
        )
    if start.last is None and config.rewarmup.amount:
        raise UserError(
            f"schedule.rewarmup: '{config.rewarmup}' is for branches; a run that starts at step 0 "
            "has schedule.warmup"
        )
    ready = begin + (climb - 1 if config.inclusive and climb else climb)
    hold = clock.length(config.cooldown.hold, total)
    cooldown = cooldown_length(config.cooldown, clock, total, ready)
    if cooldown + hold > total - ready or cooldown < 0:
        raise UserError(
            f"schedule.cooldown.length: '{config.cooldown.length}' is {cooldown} steps"
            f"{f' and {hold} of cooldown.hold' if hold else ''}, longer than the {total - ready} "
            f"steps of the run after step {ready}; use at most {total - ready - hold} steps or a "
            "longer schedule.total"
        )
    inclusive = 1 if config.inclusive and cooldown else 0
    return _Lengths(ready, total - hold - cooldown, total - hold - inclusive, total)


def _climb(config: ScheduleConfig, lr: float, ready: int, start: Start) -> list[Phase]:
    length = ready - start.step
    if length == 0:
        return []
    if start.last:
        return [Phase("rewarmup", start.step, length, start.rate / lr, 1.0, "linear", lr)]
    shape, top = config.warmup_shape, 1.0
    if config.main == "function":
        top = shapes.function(str(config.function))(ready)
    return [Phase("warmup", 0, length, config.warmup_from * top, top, shape, lr)]


def _main(
    config: ScheduleConfig, lr: float, clock: TokenClock, lengths: _Lengths, start: Start
) -> list[Phase]:
    """What is between warmup and cooldown."""
    begin, end, level, last = lengths.ready, lengths.fall, start.multiplier, start.last
    if config.main == "constant":
        return [phase for phase in _stages(config, lr, clock, lengths, start) if phase.length > 0]
    if begin == end:
        return []
    shape = "inverse-sqrt" if config.main == "inverse-sqrt" else str(config.function)
    going_on = last and (last.kind, last.shape, last.peak) == ("curve", shape, lr)
    if last and going_on and begin == start.step:
        return [replace(last, length=end - last.start)]
    if config.main == "function":
        return [Phase("curve", begin, end - begin, 1.0, 1.0, shape, lr)]
    own = clock.length(config.timescale, lengths.total) if config.timescale else 0
    timescale = own or clock.length(config.warmup, lengths.total) or 1
    return [Phase("curve", begin, end - begin, level, 0.0, shape, lr, float(timescale))]


def _stages(
    config: ScheduleConfig, lr: float, clock: TokenClock, lengths: _Lengths, start: Start
) -> list[Phase]:
    """The constant rate and its drops."""
    at, level, found = lengths.ready, start.multiplier, list[Phase]()
    for i, stage in enumerate(config.stages):
        drop = _point(f"schedule.stages.{i}.at", stage.at, clock)
        end = drop + clock.length(stage.ramp, lengths.total)
        if start.last and (drop < start.step >= end or drop >= lengths.fall):
            continue  # the ancestors have had it, or this branch cools down before it
        if not (at <= drop or start.last) or drop >= lengths.fall or end > lengths.fall:
            raise UserError(
                f"schedule.stages.{i}: {stage.at} with a ramp of {stage.ramp} is from step {drop} "
                f"to {end}, which must lie between {at} and {lengths.fall}, in order"
            )
        if drop > at:
            found.append(_constant(at, drop, level, lr))
        begin = max(drop, at)
        ramp = Phase("ramp", begin, end - begin, level, stage.factor, "linear", lr)
        found.append(_going_on(ramp, start))
        at, level = end, stage.factor
    return [*found, _constant(at, lengths.fall, level, lr)]


def _going_on(ramp: Phase, start: Start) -> Phase:
    """The ramp, or that of the ancestors when a branch begins within it."""
    last = start.last
    same = last and (last.kind, last.end, last.peak) == ("ramp", ramp.end, ramp.peak)
    return last if last and same and ramp.start == start.step else ramp


def _constant(begin: int, end: int, level: float, lr: float) -> Phase:
    return Phase("constant", begin, end - begin, level, level, "linear", lr)


def _end(
    config: ScheduleConfig, lr: float, clock: TokenClock, lengths: _Lengths, level: float
) -> Sequence[Phase]:
    """The cooldown and what holds its last multiplier."""
    cooldown, length = config.cooldown, lengths.hold - lengths.fall
    floor, parameter = cooldown.floor, cooldown.exponent or 0.0
    if lengths.fall == lengths.total:
        return ()
    if cooldown.half_life is not None:
        parameter = float(clock.length(cooldown.half_life, lengths.total))
        floor = level * 0.5 ** (length / parameter)
    elif floor > level:
        raise UserError(
            f"schedule.cooldown.floor: {floor:g} is above the multiplier {level:g} at the start of "
            f"the cooldown; use at most {level:g}"
        )
    fall = Phase("cooldown", lengths.fall, length, level, floor, cooldown.shape, lr, parameter)
    rest = lengths.total - lengths.hold
    hold = Phase("hold", lengths.hold, rest, floor, floor, "linear", lr)
    return [phase for phase in (fall, hold) if phase.length > 0]


def check_schedule(config: ScheduleConfig) -> None:
    """Raise UserError when fields that belong together are not given together."""
    check_cooldown(config.cooldown, "schedule.cooldown")
    if (config.main == "function") != (config.function is not None):
        raise UserError(
            f"schedule.function: {config.function} with schedule.main={config.main}; main=function "
            "and a function belong together"
        )
    if config.timescale is not None and config.main != "inverse-sqrt":
        raise UserError("schedule.timescale: is for schedule.main=inverse-sqrt")
    if config.stages and config.main != "constant":
        raise UserError(f"schedule.stages: drops of a constant rate; main is {config.main}")


def check_cooldown(cooldown: CooldownConfig, name: str) -> None:
    """The same for a cooldown. `name`: of the field that it is in."""
    shape = cooldown.shape
    if cooldown.hold.amount and cooldown.length == steps(0):
        raise UserError(f"{name}.hold: '{cooldown.hold}' after no cooldown; set {name}.length")
    for field, needs in (("exponent", "power"), ("half_life", "half-life")):
        given = getattr(cooldown, field)
        if (given is not None) != (shape == needs):
            state = f"'{given}' is for shape={needs}, not {shape}" if given else f"missing; {shape}"
            raise UserError(f"{name}.{field}: {state}{'' if given else ' needs it'}")
    if cooldown.half_life is not None and cooldown.half_life.amount <= 0:
        raise UserError(f"{name}.half_life: '{cooldown.half_life}' is no length; use 500 steps")
    if shape == "half-life" and cooldown.floor:
        raise UserError(f"{name}.floor: {cooldown.floor:g}, but 'half-life' has no floor; use 0")
    if shape == "exponential" and cooldown.floor <= 0:
        raise UserError(
            f"{name}.floor: 0 cannot be reached by the shape 'exponential'; use a floor above 0, "
            "such as 0.01"
        )


def _point(name: str, position: Duration, clock: TokenClock) -> int:
    try:
        return clock.point(position)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
