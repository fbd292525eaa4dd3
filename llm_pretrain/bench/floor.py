"""What each part of a step would take at the rates that were measured alone, where that is known.

There is no floor for norms and elementwise operations, since their bytes depend on what a compiler
fuses, nor for exchanges, whose links this bench does not measure.
"""

from dataclasses import dataclass

from llm_pretrain.bench.modules import Alone
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.model.flops import forward_flops_per_token, parameter_count

_ADAMW_BYTES = 28
"""Per parameter: AdamW reads it, its gradient and two moments, and writes all but the gradient."""
_NORM_BYTES, _CLIP_BYTES = 4, 8
"""The norm reads the gradient, clipping reads and writes it."""


@dataclass(frozen=True)
class Floor:
    """The least seconds of a part of one step."""

    seconds: float
    by: str
    """What was divided by what."""


@dataclass(frozen=True)
class Rates:
    """Medians of what was measured alone, each in its base unit; None: was not."""

    matmul: float
    """FLOP/s of the products that are not in fp8."""
    fp8: float | None
    copy: float
    """Bytes read and written per second."""


def floors(
    config: TrainConfig, layout: Layout, passes: int, attention: Alone, rates: Rates
) -> dict[str, Floor]:
    """By names of profile.PARTS, for one rank."""
    found = {"attention": _attention(config, passes, attention)}
    products = _products(config, layout, rates)
    if products is not None:
        found["matrix products"] = products
    if config.engine.offload == "none":
        found["optimizer update"] = _update(config, layout, rates)
    return found


def product_flops(config: TrainConfig) -> tuple[int, int]:
    """Operations of one step in matrix products, over all ranks: of the blocks, and of the head.

    With what engine.recompute computes again.
    """
    model, data = config.model, config.data
    tokens = data.global_batch * data.sequence_length
    head = 2 * model.width * model.vocab_size
    # A causal attention of -1 positions looks at 0 keys on average.
    blocks = forward_flops_per_token(model, -1, causal=True) - head
    times = 4 if config.engine.recompute == "block" else 3
    return times * blocks * tokens, 3 * head * tokens


def _products(config: TrainConfig, layout: Layout, rates: Rates) -> Floor | None:
    blocks, head = (flops / layout.size for flops in product_flops(config))
    if config.precision.name != "fp8":
        total = blocks + head
        by = f"{total / 1e12:.3g} TFLOP at the measured matmul peak, {_tera(rates.matmul)}"
        return Floor(total / rates.matmul, by)
    if rates.fp8 is None:
        return None
    # Blocks that stay in bfloat16 have the same matrices as the others.
    model, precision = config.model, config.precision
    kept = min(model.layers, precision.keep_first + precision.keep_last) / model.layers
    eight, sixteen = blocks * (1 - kept), blocks * kept + head
    by = f"{eight / 1e12:.3g} TFLOP in fp8 at {_tera(rates.fp8)}, "
    by += f"{sixteen / 1e12:.3g} TFLOP in bf16 at {_tera(rates.matmul)}"
    return Floor(eight / rates.fp8 + sixteen / rates.matmul, by)


def _attention(config: TrainConfig, passes: int, attention: Alone) -> Floor:
    calls = passes * config.model.layers
    seconds = calls * attention.both.median
    by = f"{calls} times attention alone, forward and backward"
    if config.engine.recompute == "block":
        seconds += calls * attention.forward.median
        by += ", and forward once more"
    return Floor(seconds, by)


def _update(config: TrainConfig, layout: Layout, rates: Rates) -> Floor:
    cut = layout.size if config.engine.name == "deepspeed" else layout.size // layout.replicate
    clip = _CLIP_BYTES if config.optimizer.grad_clip > 0 else 0
    size = parameter_count(config.model) / cut * (_ADAMW_BYTES + _NORM_BYTES + clip)
    by = f"{size / 1e9:.3g} GB at the measured copy rate, {rates.copy / 1e9:,.0f} GB/s"
    return Floor(size / rates.copy, by)


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s"
