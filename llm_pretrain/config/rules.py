"""Rules about valid input that involve more than one field."""

from pathlib import Path

from llm_pretrain.config.average import check_average, check_rule
from llm_pretrain.config.layout import check_engine
from llm_pretrain.config.optimizer_rules import SCHEDULE_FREE, check_optimizer
from llm_pretrain.config.precision import check_precision
from llm_pretrain.config.schema import BranchSpec, TrainConfig
from llm_pretrain.duration import Duration
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.build import check_cooldown, check_schedule
from llm_pretrain.schedule.schedule import clock_of, schedule_of

_NAME_BYTES = 200
"""Of 255 that file systems take: the rest is for what is written beside a run before it exists."""


def check(config: TrainConfig) -> None:
    """Raise UserError, naming field, value and what would be valid, when fields disagree."""
    if not config.run.name or "/" in config.run.name or config.run.name.startswith("."):
        raise UserError(f"run.name: '{config.run.name}' cannot be the name of a folder")
    if len(config.run.name.encode()) > _NAME_BYTES:
        raise UserError(
            f"run.name: {len(config.run.name.encode())} bytes are too long for the name of a "
            f"folder; use {_NAME_BYTES} at most"
        )
    if Path(config.run.dir).name in ("", ".."):
        raise UserError(f"run.dir: '{config.run.dir}' has no name of its own; name a folder")
    _check_model(config)
    _check_batch(config)
    check_engine(config)
    check_precision(config)
    check_schedule(config.schedule)
    total, clock = schedule_of(config).total, clock_of(config)
    evaluate = clock.length(config.eval.every, total)
    check_average(config.average, clock, evaluate, None if config.past else total)
    check_rule(config.average, config.optimizer.name, SCHEDULE_FREE)
    _check_mean(config)
    check_optimizer(config)
    if config.logger.every.amount <= 0:
        raise UserError(f"logger.every: '{config.logger.every}' never logs; use at least 1 step")
    for i, spec in enumerate(config.plan):
        check_branch_spec(spec, f"plan.{i}")


def check_branch_spec(spec: BranchSpec, name: str) -> None:
    """Raise UserError when a spec names no branch or names it twice over."""
    if bool(spec.at) == bool(spec.ends):
        raise UserError(
            f"{name}: needs either at (where branches start) or ends (their horizons), "
            f"got at={[str(d) for d in spec.at]} and ends={[str(d) for d in spec.ends]}"
        )
    for field, positions in (("at", spec.at), ("ends", spec.ends)):
        for position in positions:
            if position.unit == "percent" or position.amount <= 0:
                raise UserError(f"{name}.{field}: '{position}' is no position; use steps or tokens")
    _check_kind(spec, name)
    length = spec.cooldown.length
    if isinstance(length, Duration) and length.unit == "percent" and not 0 <= length.amount < 100:
        raise UserError(
            f"{name}.cooldown.length: '{length}' of a branch leaves no trunk; use < 100%"
        )
    if length == "rest":
        raise UserError(f"{name}.cooldown.length: 'rest' is for whole runs; use steps, tokens or %")
    check_cooldown(spec.cooldown, f"{name}.cooldown")


def _check_kind(spec: BranchSpec, name: str) -> None:
    """Raise UserError for fields that the kind of branch does not have."""
    plain = BranchSpec()
    others = ("cooldown", "rewarmup") if spec.kind == "average" else ("of", "spacing")
    for field in others:
        if getattr(spec, field) != getattr(plain, field):
            raise UserError(f"{name}.{field}: means nothing with kind={spec.kind}; leave it out")
    if spec.spacing.unit == "percent":
        raise UserError(
            f"{name}.spacing: '{spec.spacing}' of the run would change when it is prolonged; use "
            "steps or tokens"
        )


def _check_mean(config: TrainConfig) -> None:
    """Raise UserError unless a mean of checkpoints is as the branch manager makes it."""
    if not config.mean_of:
        return
    end = config.past[-1].until if config.past else 0
    if config.mean_of != sorted(set(config.mean_of)) or config.mean_of[-1] != end:
        raise UserError(
            f"mean_of: {config.mean_of} is written by the branch manager; use llm-pretrain branch "
            "apply kind=average"
        )
    if clock_of(config).point(config.schedule.total) != end:
        raise UserError(
            f"schedule.total: {config.schedule.total}, but a mean of checkpoints at step {end} "
            "trains nothing; branch from it to train on"
        )


def _check_model(config: TrainConfig) -> None:
    model = config.model
    if model.heads % model.kv_heads:
        raise UserError(
            f"model.kv_heads: {model.kv_heads} does not divide model.heads={model.heads}; "
            f"use one of {_divisors(model.heads)}"
        )
    if model.head_dim % 2:
        raise UserError(f"model.head_dim: {model.head_dim} is odd; RoPE rotates pairs")
    trained = config.data.tokenizer.path is None
    if trained and config.data.tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"model.vocab_size: {model.vocab_size} is smaller than the tokenizer's "
            f"data.tokenizer.vocab_size={config.data.tokenizer.vocab_size}"
        )


def _check_batch(config: TrainConfig) -> None:
    data = config.data
    if data.global_batch % data.micro_batch:
        raise UserError(
            f"data.global_batch: {data.global_batch} is not a multiple of "
            f"data.micro_batch={data.micro_batch}; use a micro_batch of "
            f"{_divisors(data.global_batch)}"
        )
    if not data.sources:
        raise UserError("data.sources: empty; name at least one corpus")
    for name, source in data.sources.items():
        if source.kind != "stdlib" and source.path is None:
            raise UserError(f"data.sources.{name}.path: missing; kind '{source.kind}' needs it")
        if source.kind == "tokens" and config.data.tokenizer.path is None:
            raise UserError(
                f"data.tokenizer.path: missing; source '{name}' holds tokens, so the tokenizer "
                "that made them must be named"
            )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
