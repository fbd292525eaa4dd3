"""Averages of the parameters along a run: which, and when they are evaluated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Any

from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock

BEST = "val_loss_average"
"""In a row of metrics, the smallest of the averages' losses, beside theirs."""
_MOST = 64
"""Sums in the longest window: more would hardly be meant, and each is as large as the model."""


@dataclass(config=RULES)
class AverageConfig:
    """Averages of the parameters, evaluated beside them. They change nothing about the training.
    Each half-life, and each `stride` in the longest window, takes 4 bytes for every parameter that
    a rank holds, and as much of each checkpoint."""

    every: Duration = steps(5)
    """Interval of the samples that are averaged; 5 steps in the paper."""
    windows: list[Duration] = field(default_factory=list)
    """Uniform means over the last so many steps, all those that fit evaluated wherever windows end.
    The paper's sweep is 500 to 2500 steps. Each must be a multiple of `stride`."""
    stride: Duration | None = None
    """How often windows end, in step with eval.every: one a multiple of the other. Null: the
    longest that divides all windows, so a single one is followed by the next. As long as `every`,
    the last few samples are averaged at any of them (LAWA)."""
    half_lives: list[Duration] = field(default_factory=list)
    """Exponential moving averages: a sample that is one half-life older counts half as much. They
    are evaluated at every evaluation."""

    @property
    def on(self) -> bool:
        """Whether there is anything to average."""
        return bool(self.windows or self.half_lives)


@plain_dataclass(frozen=True)
class AverageSteps:
    """The lengths of an AverageConfig in steps of the newest batch."""

    every: int
    stride: int
    """0 without windows."""
    windows: tuple[int, ...]
    """Ascending, each once."""
    half_lives: tuple[int, ...]
    """Ascending, each once."""

    @property
    def sums(self) -> int:
        """Sums of a stride's samples that the longest window needs."""
        return self.windows[-1] // self.stride if self.windows else 0

    @property
    def tensors(self) -> int:
        """Float32 tensors that are kept for each parameter."""
        return self.sums + len(self.half_lives)


def in_steps(average: AverageConfig, clock: TokenClock) -> AverageSteps:
    """All lengths in steps, tokens rounded up.

    Raises UserError for a length that is none, has none without the end of the run, or does not fit
    the others.
    """

    def count(name: str, length: Duration, example: str) -> int:
        if length.unit == "percent":
            raise UserError(
                f"average.{name}: '{length}' of the run would change when it is prolonged; use "
                f'steps or tokens, such as "{example}"'
            )
        if length.amount <= 0:
            raise UserError(f"average.{name}: '{length}' is no length; use \"{example}\" or more")
        return clock.length(length, 0)

    every = count("every", average.every, "1 steps")
    windows = sorted({count("windows", length, f"{every} steps") for length in average.windows})
    lives = sorted({count("half_lives", length, f"{every} steps") for length in average.half_lives})
    for window in windows:
        _check_multiple("windows", window, "every", every)
    stride = math.gcd(*windows)
    if average.stride is not None:
        stride = count("stride", average.stride, f"{every} steps")
        _check_multiple("stride", stride, "every", every)
        for window in windows:
            _check_multiple("windows", window, "stride", stride)
    found = AverageSteps(every, stride if windows else 0, tuple(windows), tuple(lives))
    if found.sums > _MOST:
        asked = ", ".join(map(str, windows))
        raise UserError(
            f"average.windows: {asked} steps that end every {stride} steps are {found.sums} sums "
            f"as large as the model; use a stride of {-(-windows[-1] // _MOST)} steps or more that "
            "divides all of them"
        )
    return found


def _check_multiple(name: str, length: int, of: str, unit: int) -> None:
    if length % unit:
        below, above = length // unit * unit, -(-length // unit) * unit
        raise UserError(
            f"average.{name}: {length} steps are no multiple of average.{of}={unit} steps; "
            f"use {f'{below} or ' if below else ''}{above} steps"
        )


def best_average(row: Mapping[str, Any]) -> tuple[str, float] | None:
    """Of a row of metrics, which average has the smallest loss, in words, and that loss in nats per
    token; None without one."""
    losses = {name: row[f"val_loss_{name}"] for name in map(_average_of, row) if name}
    if not losses:
        return None
    name = min(losses, key=lambda key: losses[key])
    kind, _, length = name.rpartition("_")
    return f"{kind.replace('half_life', 'half-life')} of {length} steps", losses[name]


def _average_of(key: str) -> str:
    """The average whose loss has this key in a row of metrics; empty for other keys."""
    name = key.removeprefix("val_loss_")
    return name if name.startswith(("window_", "half_life_")) else ""


def check_rule(average: AverageConfig, name: str, averaging: Sequence[str]) -> None:
    """Raise UserError when the update rule `name` is one of those that average by themselves."""
    if average.on and name in averaging:
        raise UserError(
            f"average: with optimizer.name={name}, which evaluates an average of its own, there is "
            "nothing to average beside it; use average=none, or optimizer=adamw"
        )


def check_average(
    average: AverageConfig, clock: TokenClock, evaluate: int, total: int | None
) -> None:
    """Raise UserError when an average could never be evaluated.

    `evaluate`: interval of evaluations in steps; 0: only at the end. `total`: steps of the run;
    None for a branch, which keeps the windows of its parent however short it is.
    """
    found = in_steps(average, clock)
    if not found.windows:
        return
    shortest, stride = found.windows[0], found.stride
    if total is not None and shortest > total:
        raise UserError(
            f"average.windows: {shortest} steps are more than the {total} of the run; use "
            f"{total} steps or less"
        )
    if evaluate and stride % evaluate and evaluate % stride:
        nearest = max(1, round(evaluate / stride)) * stride
        raise UserError(
            f"average.stride: windows end every {stride} steps, mostly between two evaluations, "
            f"with eval.every={evaluate} steps; use eval.every={nearest} steps"
        )
    if not evaluate and total is not None and total % stride:
        raise UserError(
            f"average.windows: they end every {stride} steps and are never evaluated, with "
            f"eval.every=0 and an end at step {total}; use eval.every={stride} steps"
        )
