"""What a block keeps for its backward pass on a GPU, in closed form: no GPU to measure it on."""

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.layout import Layout
from llm_pretrain.estimate.trace import trace

LENGTH = 2048


def plan(*overrides: str) -> TrainConfig:
    """One micro-batch of one sequence on each of four ranks."""
    short = (f"data.sequence_length={LENGTH}", "data.micro_batch=1", "data.global_batch=4")
    return compose(["model=llama_8b", *short, "engine.recompute=none", *overrides], name="estimate")


def kept(config: TrainConfig, layout: Layout) -> int:
    """Bytes that the forward pass of a block in the middle leaves."""
    stretches = trace(config, layout, 1, grouped=True).stretches
    (middle,) = (s for s in stretches if (s.segment.name, s.segment.block) == ("forward", 1))
    change, _ = middle.memory(between=1)
    assert {category for category, size in change.items() if size} == {"activations"}
    return change["activations"]


def bf16(model: ModelConfig) -> int:
    """Bytes for each token: the residual stream is float32, products are bfloat16."""
    width, ffn = model.width, model.ffn
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return (
        4 * width  # input of the attention's norm: the residual stream itself
        + 4  # its root mean square
        + 3 * 2 * width  # its output, which autocast casts anew for each of q, k and v
        + 2 * queries  # rotated queries
        + 2 * keys  # rotated keys
        + 2 * keys  # values
        + 2 * queries  # attention's output, which the product after it needs too
        + 4 * model.heads  # the softmax's log-sum-exp
        + 4 * width  # input of the network's norm: the residual stream after attention
        + 4  # its root mean square
        + 2 * 2 * width  # its output, cast for gate and up
        + 2 * ffn  # gate
        + 2 * ffn  # silu(gate)
        + 2 * ffn  # up
        + 2 * ffn  # their product
    )


def test_bf16_with_fused_norms() -> None:
    config = plan()
    # The weights of the two norms arrive in bfloat16, and the kernel keeps them in float32.
    weights = 2 * 4 * config.model.width
    assert bf16(config.model) == 209_032
    assert kept(config, Layout(shard=4)) == bf16(config.model) * LENGTH + weights


def test_only_the_input_with_recomputation() -> None:
    config = plan("engine.recompute=block")
    assert kept(config, Layout(shard=4)) == 4 * config.model.width * LENGTH


def test_tensor_parallel_ranks_keep_their_heads_and_a_part_of_the_stream() -> None:
    config, ranks = plan("engine.tensor=4"), 4
    model = config.model
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    sequence = 2 * (4 * model.width + 4)  # residual streams and root mean squares, cut along T
    whole = 5 * 2 * model.width  # what q, k, v, gate and up read is gathered before
    heads = 2 * (2 * queries + 2 * keys) + 4 * model.heads
    per_token = sequence / ranks + whole + (heads + 4 * 2 * model.ffn) / ranks
    weights = 2 * 4 * model.width
    assert kept(config, Layout(tensor=4)) == per_token * LENGTH + weights


@pytest.mark.parametrize("kv_heads", [8, 32])
def test_float32_keeps_the_scores_of_grouped_heads(kv_heads: int) -> None:
    config = plan("precision=fp32", f"model.kv_heads={kv_heads}")
    model = config.model
    queries = model.heads * model.head_dim
    # Without a fused kernel each query head gets a copy of its keys and values, and all scores.
    attention = model.heads * (LENGTH if kv_heads < model.heads else 1)
    per_token = 4 * (4 * model.width + 4 * queries + 4 * model.ffn + attention) + 2 * 4
    assert kept(config, Layout(shard=4)) == per_token * LENGTH
