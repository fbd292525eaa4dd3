"""Where the branches of a spec start and end, in steps."""

from llm_pretrain.config.schema import BranchSpec, TrainConfig
from llm_pretrain.duration import Duration
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import clock_of


def points(
    parent: TrainConfig, changed: TrainConfig, spec: BranchSpec
) -> list[tuple[int, int | None]]:
    """(start, end) of each branch in steps; the end is None when no cooldown sets it."""
    clock = clock_of(parent)
    if spec.kind == "average":
        ends = [clock.point(position) for position in spec.at or spec.ends]
        return [(end, end) for end in ends]
    if spec.at:
        starts = [clock.point(at) for at in spec.at]
        return [(s, _end(s, spec, clock_from(clock, changed, s))) for s in starts]
    own = clock_of(changed)
    if own.rates[-1] != clock.rates[-1] and any(e.unit == "tokens" for e in spec.ends):
        raise UserError("ends: horizons in tokens need the parent's batch size; use at=")
    return [(_start(clock.point(e), spec, own), clock.point(e)) for e in spec.ends]


def clock_from(clock: TokenClock, changed: TrainConfig, start: int) -> TokenClock:
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
