"""What of a block is kept for its backward pass, and what is computed again."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from llm_pretrain.config.engine import Recompute

_KEPT = frozenset(
    {
        *("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_mm"),
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
        "flex_attention",
        # Made anew, it would send once more.
        "_c10d_functional::reduce_scatter_tensor",
    }
)
"""Operators whose results the selective mode keeps: what takes long for the bytes of its result."""


def contexts(mode: Recompute) -> dict[str, Any]:
    """Arguments of torch's `checkpoint` for a mode other than none."""
    if mode == "block":
        return {}
    return {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}


def _policy(
    _context: Any, operator: Any, *_args: Any, **_kwargs: Mapping[str, Any]
) -> CheckpointPolicy:
    name = operator.name()
    # FlashAttention 2 and 3 register operators of their own; 4 has none and runs again.
    keep = name in _KEPT or name.startswith(("flash_attn", "flashattn"))
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
