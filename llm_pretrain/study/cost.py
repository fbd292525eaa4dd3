"""What one run costs before it is trained: operations, device-hours, disk."""

from dataclasses import dataclass

from llm_pretrain.branch.plan import planned_steps
from llm_pretrain.config.average import in_steps
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.estimate.rates import unknown
from llm_pretrain.model.flops import flops_per_token, parameter_count
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import clock_of, schedule_of

_STATE = {"adamw": 12, "muon": 12, "schedule_free": 16, "schedule_free_plus": 20, "ademamix": 16}
"""Bytes in a checkpoint for each parameter, at most: itself and what the update rule keeps."""


_HOUR = 3600.0


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one device."""

    rate: float
    measured: bool
    """By a run of this study; else by the estimate."""

    def hours(self, tokens: int) -> float:
        """Device-hours of training on so many tokens."""
        return tokens / self.rate / _HOUR


def tokens_of(config: TrainConfig, begin: int, end: int) -> int:
    """Tokens of the steps from `begin` to `end`."""
    clock = clock_of(config)
    return clock.tokens_at(end) - clock.tokens_at(begin)


def flops_of(config: TrainConfig, begin: int, end: int, *, causal: bool = False) -> int:
    """Operations of the steps from `begin` to `end`; `causal`: without those of masked scores."""
    per_token = flops_per_token(config.model, config.data.sequence_length, causal=causal)
    return tokens_of(config, begin, end) * per_token


def measured_speed(run: Run) -> Speed | None:
    """The newest speed in its metrics, if it has trained. Raises UserError."""
    sessions = run.record.sessions
    try:
        rate = run.newest_metrics("tokens_per_second").get("tokens_per_second")
    except ValueError as error:
        raise UserError(f"{run.metrics_path}: cannot be read ({error})") from error
    if not rate or not sessions:
        return None
    return Speed(rate / sessions[-1].get("world_size", 1), measured=True)


def estimated_speed(config: TrainConfig) -> Speed | None:
    """By the estimate, where the cluster's profile knows what it takes.

    Raises UserError when the cluster's devices cannot be the ranks of the run.
    """
    if unknown(config):
        return None
    from llm_pretrain.estimate import plan  # noqa: PLC0415  (torch takes seconds)

    speed = plan.estimated_speed(config)
    return None if speed is None else Speed(speed.tokens_per_second, measured=False)


def disk_of(config: TrainConfig, begin: int) -> int:
    """Bytes of the checkpoints that a run keeps in the end, at most."""
    total, clock = schedule_of(config).total, clock_of(config)
    every = clock.length(config.checkpoint.keep_every, total)
    kept = planned_steps(config) | set(range(every, total + 1, every) if every else ()) | {total}
    size = _STATE[config.optimizer.name] + 4 * in_steps(config.average, clock).tensors
    count = len([step for step in kept if step > begin]) + config.checkpoint.keep_last - 1
    return count * size * parameter_count(config.model)
