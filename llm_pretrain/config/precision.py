"""Which precisions fit which runs. Imports no torch."""

import json
import math

from llm_pretrain.config.schema import PrecisionConfig, TrainConfig
from llm_pretrain.errors import UserError

TRANSFORMER_ENGINE, TORCHAO = "transformer_engine", "torchao"


def check_precision(config: TrainConfig) -> None:
    """Raise UserError when fields of the precision, model and engine contradict each other."""
    precision = config.precision
    if precision.name != "fp8":
        _check_owner(precision)
        return
    kept = precision.keep_first + precision.keep_last
    if kept >= config.model.layers:
        raise UserError(
            f"precision.keep_first: {precision.keep_first} + keep_last={precision.keep_last} leave "
            f"none of model.layers={config.model.layers} blocks in fp8; keep fewer, or use "
            "precision=bf16"
        )
    _check_library(config)
    _check_sizes(config)


def obstacle(config: TrainConfig) -> str | None:
    """Why Transformer Engine cannot do this run's products; None when nothing in it forbids."""
    engine = config.engine
    if engine.tensor > 1:
        return f"it takes no matrices that engine.tensor={engine.tensor} has cut"
    if engine.compile:
        return "it breaks the blocks that engine.compile=true would compile into pieces"
    if engine.recompute == "selective":
        return "engine.recompute=selective cannot keep results of its products; block can"
    return None


def _check_owner(precision: PrecisionConfig) -> None:
    """Raise UserError when a field of fp8 is set with another precision: it would do nothing."""
    default = PrecisionConfig()
    for field in ("library", "recipe", "keep_first", "keep_last", "emulate"):
        value, usual = getattr(precision, field), getattr(default, field)
        if value != usual:
            raise UserError(
                f"precision.{field}: {value} is for precision=fp8; with precision={precision.name} "
                f"leave it {json.dumps(usual)}"
            )


def _check_library(config: TrainConfig) -> None:
    precision, recompute = config.precision, config.engine.recompute
    if precision.emulate and precision.library == TRANSFORMER_ENGINE:
        raise UserError(
            "precision.library: transformer_engine cannot emulate; with precision.emulate=true use "
            "torchao or auto"
        )
    other = precision.recipe != "current"
    if other and (precision.emulate or precision.library == TORCHAO):
        asked = "emulate=true" if precision.emulate else "library=torchao"
        raise UserError(
            f"precision.recipe: {precision.recipe} is Transformer Engine's; with "
            f"precision.{asked} use current"
        )
    if precision.recipe == "delayed" and recompute != "none":
        raise UserError(
            f"precision.recipe: delayed would note each value twice with engine.recompute="
            f"{recompute}; use recipe=current or block, or engine.recompute=none"
        )
    reason = obstacle(config)
    if reason and other:
        raise UserError(
            f"precision.recipe: {precision.recipe} is Transformer Engine's, and {reason}; change "
            "that, or use precision.recipe=current with precision.library=torchao"
        )
    if reason and precision.library == TRANSFORMER_ENGINE:
        raise UserError(
            f"precision.library: {TRANSFORMER_ENGINE} does not fit: {reason}; change that, or use "
            "precision.library=torchao"
        )


def _check_sizes(config: TrainConfig) -> None:
    """Raise UserError when a matrix or what it multiplies has a size that no kernel takes.

    Of an update's passes, the smallest may have a single sequence, so each must fit on its own.
    """
    unit = 128 if config.precision.recipe == "block" else 16
    model, data, engine = config.model, config.data, config.engine
    dim, tensor = model.head_dim, engine.tensor
    for field, value, heads, parts, cut in (
        ("model.width", model.width, 1, 1, ""),
        ("model.head_dim", dim, model.heads, tensor, "engine.tensor"),
        ("model.head_dim", dim, model.kv_heads, tensor, "engine.tensor"),
        ("model.ffn", model.ffn, 1, tensor, "engine.tensor"),
        ("data.sequence_length", data.sequence_length, 1, engine.context, "engine.context"),
    ):
        size = heads * value
        if size % (unit * parts) == 0:
            continue
        step = math.lcm(unit * parts, heads) // heads
        valid = -(-value // step) * step
        each = f" x {heads} heads" if heads > 1 else ""
        among = f" / {cut}={parts}" if parts > 1 else ""
        raise UserError(
            f"{field}: {value}{each}{among} is no multiple of {unit}, which precision=fp8 needs"
            f"{' with recipe=block' if unit == 128 else ''}; use {field}={valid}"
        )
