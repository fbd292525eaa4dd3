"""Which precisions a config may ask for, and what the refusal says."""

import pytest

from llm_pretrain.config.compose import compose, override
from llm_pretrain.config.schema import PrecisionConfig
from llm_pretrain.errors import UserError

FP8 = "precision=fp8"
TE, AO = "precision.library=transformer_engine", "precision.library=torchao"
BLOCK, DELAYED = "precision.recipe=block", "precision.recipe=delayed"
SMALL = (
    *("experiment=demo", "model.width=32", "model.layers=2", "model.heads=2", "model.kv_heads=2"),
    *("model.head_dim=16", "model.ffn=64", "data.sequence_length=32"),
)
WIDE = ("model.width=256", "model.head_dim=64", "model.ffn=512", "data.sequence_length=128")


def check(*overrides: str) -> None:
    """Composing checks."""
    assert compose([*SMALL, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ("precision=bf16", "model.ffn=50"),
        (FP8,),
        (FP8, "precision.keep_first=1"),
        (FP8, "engine.tensor=2", AO),
        (FP8, "engine.compile=true", AO),
        (FP8, "engine.recompute=selective"),
        (FP8, "engine.recompute=block", TE),
        (FP8, DELAYED),
        (FP8, BLOCK, *WIDE),
        (FP8, "precision.emulate=true", "engine=deepspeed", "engine.zero_stage=3"),
    ],
)
def test_accepted(overrides: tuple[str, ...]) -> None:
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((FP8, "model.width=40"), "model.width: 40 is no multiple of 16"),
        ((FP8, "model.width=40"), "use model.width=48"),
        ((FP8, "model.ffn=72", "engine.tensor=2"), r"72 / engine.tensor=2 .* use model.ffn=96"),
        ((FP8, "model.head_dim=10"), "head_dim: 10 x 2 heads is no .* use model.head_dim=16"),
        (
            (FP8, "model.heads=6", "model.kv_heads=3", "model.head_dim=8"),
            "head_dim: 8 x 3 heads .* use model.head_dim=16",
        ),
        (
            (FP8, "data.sequence_length=40", "engine.context=2"),
            r"sequence_length: 40 / engine.context=2 .* use data.sequence_length=64",
        ),
        ((FP8, BLOCK), r"width: 32 is no multiple of 128.*recipe=block; use model.width=128"),
        ((FP8, "precision.keep_first=1", "precision.keep_last=1"), "none of model.layers=2"),
        (
            (FP8, DELAYED, AO),
            "recipe: delayed is Transformer Engine's; with precision.library=torchao",
        ),
        ((FP8, BLOCK, "precision.emulate=true"), "recipe: block .* precision.emulate=true"),
        ((FP8, TE, "precision.emulate=true"), "transformer_engine cannot emulate"),
        ((FP8, TE, "engine.tensor=2"), "engine.tensor=2 has cut; .*library=torchao"),
        (
            (FP8, DELAYED, "engine.tensor=2"),
            "recipe: delayed .* engine.tensor=2 .* use precision.recipe=current",
        ),
        ((FP8, TE, "engine.compile=true"), "engine.compile=true"),
        ((FP8, TE, "engine.recompute=selective"), "block can"),
        ((FP8, DELAYED, "engine.recompute=block"), "would note each value twice"),
        (("precision=bf16", "precision.keep_last=1"), "keep_last: 1 is for precision=fp8"),
        (("precision.emulate=true",), "emulate: True is .* precision=fp32 leave it false"),
    ],
)
def test_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(*overrides)


def test_another_precision_of_the_group_resets_all() -> None:
    parent = compose([*SMALL, FP8, "precision.emulate=true", "precision.keep_first=1"])
    changed = override(parent, ["precision=bf16"]).precision
    assert changed == PrecisionConfig(name="bf16")
