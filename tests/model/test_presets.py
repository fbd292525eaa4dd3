"""Presets: exact parameter counts of the paper's table and of Llama 3."""

from pathlib import Path

import pytest
import torch
import yaml

from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.flops import parameter_count
from llm_pretrain.model.transformer import Transformer

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "model"

# Counts the authors logged for their models, and the ones Meta's checkpoints have. 1b is the sum
# of its shapes by hand: 49152 * 1792 + 24 * (4 * 1792**2 + 3 * 1792 * 4864 + 2 * 1792) + 1792.
COUNTS = {
    "paper/33m": 33_479_040,
    "paper/53m": 53_027_328,
    "paper/60m": 59_845_120,
    "paper/93m": 93_159_040,
    "paper/124m": 123_587_328,
    "paper/151m": 151_905_024,
    "paper/166m": 166_205_312,
    "paper/210m": 208_540_416,
    "paper/360m": 359_842_816,
    "paper/1b": 1_024_022_272,
    "paper/8b": 8_030_261_248,
    "llama_1b": 1_235_814_400,
    "llama_3b": 3_212_749_824,
    "llama_8b": 8_030_261_248,
    "llama_70b": 70_553_706_496,
}


def load(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def test_every_preset_is_listed() -> None:
    found = {str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.yaml")}
    assert found - {"demo"} == set(COUNTS)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_count(name: str, count: int) -> None:
    config = load(name)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == count
    assert parameter_count(config) == count
    comment = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert comment.startswith(f"# {count:,} parameters: ")


@pytest.mark.parametrize("name", ["paper/33m", "llama_70b"])
def test_preset_reaches_the_model_group_through_hydra(name: str) -> None:
    assert compose([f"model={name}"]).model == load(name)


def test_paper_sizes_follow_the_papers_rule_for_ffn() -> None:
    for name in COUNTS:
        if name.startswith("paper/") and name not in ("paper/8b",):
            config = load(name)
            assert config.ffn == -(-int(8 * config.width / 3) // 256) * 256
            assert config.heads * config.head_dim == config.width


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_count_of_odd_shapes(tied: bool, qk_norm: bool) -> None:
    config = ModelConfig(
        vocab_size=97,
        width=24,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=10,
        ffn=40,
        tied_embeddings=tied,
        qk_norm=qk_norm,
    )
    model = Transformer(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
