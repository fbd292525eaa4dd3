"""A model's config in the terms of Hugging Face's LlamaConfig, and back. Needs no torch."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.errors import UserError

FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
"""Our name -> their name."""

_SIZES = ("vocab_size", "width", "layers", "heads", "ffn")
"""What a config.json must say. LlamaConfig would take Llama 1's sizes instead, which no file
without them can mean."""

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (None, ["LlamaForCausalLM"]),
    "hidden_act": (None, "silu"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "quantization_config": (None,),
    "rope_scaling": ({"rope_type": "default"}, {"type": "default"}, None),
    "partial_rotary_factor": (None, 1.0),
}
"""Values that `Transformer` computes, the usual one last; None where the field is absent."""


def to_llama(config: ModelConfig, end_of_text_id: int | None, max_positions: int) -> dict[str, Any]:
    """The content of config.json, without the dtype of the weights.

    Raises:
        UserError: LlamaForCausalLM cannot compute this model.
    """
    _refuse_unexportable(config)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "max_position_embeddings": max_positions,
        # transformers 5 reads rope_parameters, transformers 4 rope_theta and rope_scaling.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_scaling": None,
        "initializer_range": min(config.init_std, 1.0),  # transformers 5 refuses more
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        # Null rather than absent: Llama's defaults, 1 and 2, are ordinary tokens here.
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": None,
        "use_cache": True,
    }


def from_llama(content: dict[str, Any], path: Path) -> ModelConfig:
    """The model that a config.json describes; absent fields take LlamaConfig's defaults.

    Args:
        content: the parsed file.
        path: the file, for messages.

    Raises:
        UserError: `Transformer` cannot compute this model; names the field and its value.
    """
    _refuse_foreign(content, path)
    given = {ours: content[theirs] for ours, theirs in FIELDS.items() if _has(content, theirs)}
    for ours in _SIZES:
        if type(given.get(ours)) is not int or given[ours] <= 0:
            value = json.dumps(given.get(ours))
            raise UserError(f"{path}: {FIELDS[ours]}={value}; needs a positive whole number")
    defaults = {
        "kv_heads": given["heads"],
        "head_dim": given["width"] // given["heads"],
        "norm_eps": 1e-6,
        "tied_embeddings": False,
    }
    try:
        config = ModelConfig(**{**defaults, **given, "rope_theta": _rope_theta(content, path)})
    except ValidationError as error:
        first = error.errors()[0]
        field = FIELDS[str(first["loc"][0])]
        raise UserError(f"{path}: {field}={first['input']!r}; {first['msg']}") from None
    if config.heads % config.kv_heads:
        raise UserError(
            f"{path}: num_key_value_heads={config.kv_heads} does not divide "
            f"num_attention_heads={config.heads}"
        )
    if config.head_dim % 2:
        raise UserError(f"{path}: head_dim={config.head_dim} is odd; RoPE rotates pairs")
    return config


def _refuse_unexportable(config: ModelConfig) -> None:
    if config.qk_norm:
        raise UserError(
            "model.qk_norm: true cannot be exported; Llama's format has no place for the norms' "
            "weights, and without them the logits would differ"
        )
    if config.width % config.heads:
        raise UserError(
            f"model.heads: {config.heads} does not divide model.width={config.width}; "
            "transformers opens no such Llama"
        )


def _refuse_foreign(content: dict[str, Any], path: Path) -> None:
    for field, values in _SUPPORTED.items():
        value = content.get(field)
        if value not in values:
            raise UserError(
                f"{path}: {field}={json.dumps(value)} is not supported; "
                f"only {json.dumps(values[-1])} is"
            )


def _rope_theta(content: dict[str, Any], path: Path) -> Any:
    """From transformers 5's rope_parameters, or from the rope_theta of earlier versions."""
    theta = content["rope_theta"] if _has(content, "rope_theta") else 10000.0
    rope = content["rope_parameters"] if _has(content, "rope_parameters") else {}
    plain = {"rope_type": "default", "partial_rotary_factor": 1.0, "rope_theta": theta}
    if not isinstance(rope, dict) or {**plain, **rope, "rope_theta": theta} != plain:
        raise UserError(
            f"{path}: rope_parameters={json.dumps(rope)} is not supported; only "
            "rope_type 'default' with a rope_theta is"
        )
    return rope.get("rope_theta", theta)


def _has(content: dict[str, Any], field: str) -> bool:
    return content.get(field) is not None
