"""Averages of the parameters along a run: which, and when they are evaluated."""

from collections.abc import Sequence
from dataclasses import field

from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.clock import TokenClock

BEST = "val_loss_average"
"""In a row of metrics, the smallest of the averages' losses, beside theirs."""


@dataclass(config=RULES)
class AverageConfig:
    """Averages of the parameters, evaluated beside them. They change nothing about the training.
    Each takes 4 bytes for every parameter that a rank holds, and as much of each checkpoint."""

    every: Duration = steps(5)
    """Interval of the samples that are averaged; 5 steps in the paper."""
    windows: list[Duration] = field(default_factory=list)
    """Uniform means over windows of these lengths, one window after the other from step 0 on, as in
    the paper (500 to 2500 steps). A window is evaluated where it ends, so each must be a multiple
    of `every`, and of eval.every or the other way round."""
    half_lives: list[Duration] = field(default_factory=list)
    """Exponential moving averages: a sample that is one half-life older counts half as much. They
    are evaluated at every evaluation."""

    @property
    def on(self) -> bool:
        """Whether there is anything to average."""
        return bool(self.windows or self.half_lives)


def in_steps(average: AverageConfig, clock: TokenClock) -> tuple[int, list[int], list[int]]:
    """`every`, the windows and the half-lives in steps of the newest batch, tokens rounded up.

    Lengths that are the same number of steps are there once. Raises UserError for a length that is
    none, or has none without the end of the run.
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
    windows = [count("windows", length, f"{every} steps") for length in average.windows]
    lives = [count("half_lives", length, f"{every} steps") for length in average.half_lives]
    return every, sorted(set(windows)), sorted(set(lives))


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
    every, windows, _ = in_steps(average, clock)
    if windows and total is not None and windows[0] > total:
        raise UserError(
            f"average.windows: {windows[0]} steps are more than the {total} of the run; use "
            f"{total} steps or less"
        )
    for window in windows:
        if window % every:
            below, above = window // every * every, -(-window // every) * every
            raise UserError(
                f"average.windows: {window} steps are no multiple of average.every={every} steps; "
                f"use {f'{below} or ' if below else ''}{above} steps"
            )
        if evaluate and window % evaluate and evaluate % window:
            nearest = max(1, round(window / evaluate)) * evaluate
            raise UserError(
                f"average.windows: a window of {window} steps ends between two evaluations, with "
                f"eval.every={evaluate} steps; use {nearest} steps, or eval.every={window} steps"
            )
        if not evaluate and total is not None and window <= total and total % window:
            raise UserError(
                f"average.windows: a window of {window} steps is never evaluated, with "
                f"eval.every=0 and an end at step {total}; use eval.every={window} steps"
            )
