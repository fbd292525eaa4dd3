"""Which update rules fit which runs. Imports no torch."""

import json
from typing import Any

from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.duration import Duration
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import clock_of, schedule_of

SCHEDULE_FREE = ("schedule_free", "schedule_free_plus")
"""Rules that evaluate and branch from an average."""
_RATES = {
    "schedule_free": "1 to 10 times a tuned AdamW's",
    "schedule_free_plus": "optimizer.lr=1 is usual, since it multiplies Polyak's step size",
}
_READERS = {
    "beta1": ("adamw", "schedule_free_plus", "ademamix", "muon"),
    "corrected_decay": ("adamw",),
    "interpolation": SCHEDULE_FREE,
    "weight_power": SCHEDULE_FREE,
    **dict.fromkeys(
        ("average_after", "interpolation_end", "anneal", "polyak_beta", "loss_floor"),
        ("schedule_free_plus",),
    ),
    **dict.fromkeys(("beta3", "alpha", "slow_warmup"), ("ademamix",)),
    **dict.fromkeys(("momentum", "ns_steps"), ("muon",)),
}
"""Rules that read a field, where not all do."""


def check_optimizer(config: TrainConfig) -> None:
    """Raise UserError when the rule does not fit its fields, the schedule or model."""
    optimizer = config.optimizer
    _check_readers(optimizer)
    for field in ("average_after", "anneal", "slow_warmup", "project"):
        length = getattr(optimizer, field)
        if isinstance(length, Duration) and length.unit == "percent":
            raise UserError(
                f"optimizer.{field}: '{length}' would change its meaning when a run is prolonged "
                'or branched; use steps or tokens, such as "2000 steps"'
            )
    if optimizer.name in SCHEDULE_FREE:
        _check_schedule(config)
    if optimizer.anneal.amount and optimizer.interpolation_end < optimizer.interpolation:
        raise UserError(
            f"optimizer.interpolation_end: {optimizer.interpolation_end:g} is below "
            f"interpolation={optimizer.interpolation:g}; it is to rise"
        )
    _check_projection(config)


def check_rate_of_experiment(optimizer: OptimizerConfig, given: bool) -> None:
    """Raise UserError when a rule that takes other rates than AdamW was chosen for an experiment,
    whose rate then holds, and none was `given` beside it."""
    if optimizer.name in SCHEDULE_FREE and not given:
        raise UserError(
            f"optimizer.lr: {optimizer.lr:g} is the experiment's, for another rule; with "
            f"optimizer={optimizer.name} give one beside it: {_RATES[optimizer.name]}"
        )


def advice(config: TrainConfig) -> list[str]:
    """One line for each value that is allowed, but most likely meant for another rule."""
    optimizer, found = config.optimizer, list[str]()
    if optimizer.name == "schedule_free_plus":
        if 0 < optimizer.weight_decay < 1:
            found.append(
                f"optimizer.weight_decay: {optimizer.weight_decay:g} is small for "
                "schedule_free_plus, which multiplies it by the square of its step size; its "
                "author advises 20 to 50"
            )
        if optimizer.lr < 0.1:
            found.append(
                f"optimizer.lr: {optimizer.lr:g} is small for schedule_free_plus, where it "
                "multiplies Polyak's step size; 1 is usual"
            )
        after, total = optimizer.average_after, schedule_of(config).total
        if after is not None and clock_of(config).point(after) >= total:
            found.append(
                f"optimizer.average_after: '{after}' is not before the end of the run at step "
                f"{total}, so what is evaluated is the raw iterate and no average"
            )
    if optimizer.name == "ademamix" and optimizer.slow_warmup.unit == "steps":
        total, warmup = schedule_of(config).total, int(optimizer.slow_warmup.amount)
        if warmup > total:
            found.append(
                f"optimizer.slow_warmup: '{optimizer.slow_warmup}' is longer than the run of "
                f"{total} steps, so alpha ends at {optimizer.alpha * total / warmup:.2g}; its "
                "authors take the length of the run"
            )
    return found


def _check_readers(optimizer: OptimizerConfig) -> None:
    """Raise UserError when a field is set that the rule does not read: it would do nothing."""
    default = OptimizerConfig()
    for field, readers in _READERS.items():
        value, usual = getattr(optimizer, field), getattr(default, field)
        if optimizer.name not in readers and value != usual:
            raise UserError(
                f"optimizer.{field}: {value} is for optimizer={' or '.join(readers)}; with "
                f"optimizer={optimizer.name} leave it {_shown(usual)}"
            )
    if not optimizer.project.amount:
        for field in ("projected", "scale_decay"):
            value, usual = getattr(optimizer, field), getattr(default, field)
            if value != usual:
                raise UserError(
                    f"optimizer.{field}: {value} is for projections; set optimizer.project, such "
                    f'as "1 steps", or leave it {_shown(usual)}'
                )


def _check_schedule(config: TrainConfig) -> None:
    """Raise UserError when the rate decays: the average already does what that is for."""
    name, schedule = config.optimizer.name, config.schedule
    if schedule.main != "constant" or schedule.stages:
        field, value = ("main", schedule.main) if not schedule.stages else ("stages", "a drop")
        raise UserError(
            f"schedule.{field}: {value} with optimizer={name}, whose average takes the place of a "
            "decaying rate; use schedule=constant"
        )
    if _cools(schedule.cooldown):
        raise UserError(
            f"schedule.cooldown.length: '{schedule.cooldown.length}' with optimizer={name}, whose "
            "average takes the place of a decaying rate; use schedule=constant"
        )


def check_branches(optimizer: OptimizerConfig, cooldown: CooldownConfig) -> None:
    """Raise UserError when branches with this rule cannot have this cooldown."""
    if optimizer.name in SCHEDULE_FREE and _cools(cooldown):
        raise UserError(
            f"cooldown.length: '{cooldown.length}' of a branch with optimizer={optimizer.name}, "
            'whose average takes the place of a decaying rate; use cooldown.length="0 steps", or '
            "another optimizer for the branch"
        )


def _cools(cooldown: CooldownConfig) -> bool:
    return not isinstance(cooldown.length, Duration) or cooldown.length.amount > 0


def _check_projection(config: TrainConfig) -> None:
    optimizer = config.optimizer
    if optimizer.project.amount and optimizer.projected == "invariant" and not config.model.qk_norm:
        raise UserError(
            "optimizer.projected: without model.qk_norm=true no matrix of the model is invariant "
            "to its scale; set that, or projected=blocks, which limits the model"
        )


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Duration) else json.dumps(value)
