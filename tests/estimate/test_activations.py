"""What a block keeps for its backward pass on a GPU, in closed form: no GPU to measure it on."""

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.estimate.memory import Memory, memory_of
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
        + 2 * width  # its output, in the dtype of the products that read it
        + 2 * queries  # rotated queries
        + 2 * keys  # rotated keys
        + 2 * keys  # values
        + 2 * queries  # attention's output, which the product after it needs too
        + 4 * model.heads  # the softmax's log-sum-exp
        + 4 * width  # input of the network's norm: the residual stream after attention
        + 4  # its root mean square
        + 2 * width  # its output
        + 2 * ffn  # gate
        + 2 * ffn  # silu(gate)
        + 2 * ffn  # up
        + 2 * ffn  # their product
    )


def test_bf16_with_fused_norms() -> None:
    config = plan()
    # The weights of the two norms arrive in bfloat16, and the kernel keeps them in float32.
    weights = 2 * 4 * config.model.width
    assert bf16(config.model) == 184_456
    assert kept(config, Layout(shard=4)) == bf16(config.model) * LENGTH + weights


def test_only_the_input_with_recomputation() -> None:
    config = plan("engine.recompute=block")
    assert kept(config, Layout(shard=4)) == 4 * config.model.width * LENGTH


def test_results_of_products_and_attention_with_selective_recomputation() -> None:
    config = plan("engine.recompute=selective")
    model = config.model
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    per_token = (
        4 * model.width  # the residual stream at the input
        + 2 * (queries + 2 * keys)  # queries, keys, values before they are rotated
        + 2 * queries  # attention's output
        + 4 * model.heads  # the softmax's log-sum-exp
        + 2 * model.width  # what attention adds to the stream
        + 2 * 2 * model.ffn  # gate and up
        + 2 * model.width  # what the network adds
    )
    assert kept(config, Layout(shard=4)) == per_token * LENGTH


def test_offloaded_activations_leave_what_is_small() -> None:
    config = plan("engine.offload_activations=true")
    model = config.model
    stays = (4 + 4) * LENGTH  # the two root mean squares; the log-sum-exp is a quarter MiB
    stays += 4 * model.heads * LENGTH
    weights = 2 * 4 * model.width
    traced = trace(config, Layout(shard=4), 1, grouped=True)
    (middle,) = (s for s in traced.stretches if (s.segment.name, s.segment.block) == ("forward", 2))
    change, _ = middle.memory(between=1)
    assert change["activations"] == stays + weights
    assert change["offloaded"] == traced.waiting == bf16(model) * LENGTH - stays


@pytest.mark.parametrize("offload", [True, False])
def test_what_a_block_more_costs_the_device(offload: bool) -> None:
    layout = Layout(shard=4)

    def memory(layers: int) -> tuple[int, Memory]:
        config = plan(
            f"model.layers={layers}", f"engine.offload_activations={str(offload).lower()}"
        )
        traced = trace(config, layout, 1, grouped=True)
        return traced.block, memory_of(traced, config, layout, 1)

    (block, fewer), (_, more) = memory(32), memory(33)
    grown = sum(more.held.values()) - sum(fewer.held.values())
    model = plan().model
    activations = bf16(model) * LENGTH + 2 * 4 * model.width
    if offload:
        # With so many blocks the worst moment is late, when gradients have taken the place of
        # activations.
        assert grown == 4 * block
        assert more.offloaded["activations"] == fewer.offloaded["activations"] * 32 // 31
    else:
        assert grown == 3 * block + activations


def test_tensor_parallel_ranks_keep_their_heads_and_a_part_of_the_stream() -> None:
    config, ranks = plan("engine.tensor=4"), 4
    model = config.model
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    sequence = 2 * (4 * model.width + 4)  # residual streams and root mean squares, cut along T
    whole = 2 * 2 * model.width  # what q, k and v, and gate and up read is gathered before
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
