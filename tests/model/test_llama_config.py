"""LlamaConfig's terms: there and back, and what is refused by name and value."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.errors import UserError
from llm_pretrain.model.llama_config import from_llama, to_llama

CONFIG = ModelConfig(
    vocab_size=151, width=48, layers=3, heads=6, kv_heads=2, head_dim=16, ffn=80, init_std=0.1
)
PATH = Path("folder/config.json")


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(theta: float, tied: bool) -> None:
    config = replace(CONFIG, rope_theta=theta, tied_embeddings=tied, norm_eps=1e-3)
    assert from_llama(to_llama(config, 7, 64), PATH) == config


def test_absent_fields_take_transformers_defaults() -> None:
    content = to_llama(CONFIG, None, 64)
    kept = ("model_type", "vocab_size", "hidden_size", "intermediate_size")
    kept += ("num_hidden_layers", "num_attention_heads")
    assert from_llama({name: content[name] for name in kept}, PATH) == ModelConfig(
        vocab_size=151,
        width=48,
        layers=3,
        heads=6,
        kv_heads=6,
        head_dim=8,
        ffn=80,
        norm_eps=1e-6,
        tied_embeddings=False,
    )


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("model_type", "mistral", '"mistral"'),
        ("model_type", None, "null"),
        ("architectures", ["LlamaForSequenceClassification"], "SequenceClassification"),
        ("hidden_act", "gelu", '"gelu"'),
        ("attention_bias", True, "true"),
        ("mlp_bias", True, "true"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "llama3"),
        ("rope_parameters", {"rope_type": "llama3", "factor": 8.0}, "llama3"),
        ("rope_parameters", {"rope_theta": 5e5, "partial_rotary_factor": 0.5}, "0.5"),
        ("rope_parameters", {"rope_theta": 0.0}, "0.0"),
        ("rope_parameters", [1], "[1]"),
        ("quantization_config", {"quant_method": "fp8"}, "fp8"),
        ("num_key_value_heads", 4, "4 does not divide num_attention_heads=6"),
        ("head_dim", 7, "7 is odd"),
        ("hidden_size", "48", '"48"'),
        ("hidden_size", True, "true"),
        ("vocab_size", None, "null"),
        ("num_attention_heads", 0, "0"),
        ("rms_norm_eps", -1.0, "-1.0"),
    ],
)
def test_import_refuses(field: str, value: Any, shown: str) -> None:
    content = {**to_llama(CONFIG, None, 64), field: value}
    with pytest.raises(UserError) as error:
        from_llama(content, PATH)
    name = "rope_theta" if value == {"rope_theta": 0.0} else field
    assert str(PATH) in str(error.value)
    assert f"{name}=" in str(error.value)
    assert shown in str(error.value)


def test_export_refuses_what_llama_cannot_be() -> None:
    with pytest.raises(UserError, match=r"model\.qk_norm: true"):
        to_llama(replace(CONFIG, qk_norm=True), None, 64)
    with pytest.raises(UserError, match=r"model\.heads: 5 .* model\.width=48"):
        to_llama(replace(CONFIG, heads=5, kv_heads=5), None, 64)
