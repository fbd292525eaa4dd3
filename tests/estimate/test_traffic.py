"""Links of groups, volumes in closed form, and the work of a step against the model's FLOPs."""

from dataclasses import replace

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout, passes
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.plan import estimate
from llm_pretrain.estimate.trace import trace
from llm_pretrain.estimate.traffic import Link, link_of
from llm_pretrain.model.flops import forward_flops_per_token, parameter_count


@pytest.mark.parametrize(
    ("ranks", "world", "per_node", "expected"),
    [
        ((0, 1, 2, 3), 8, 4, ("inside nodes", 4)),
        ((0, 1, 2, 3), 8, 8, ("inside nodes", 4)),
        ((0, 1, 2, 3, 4, 5, 6, 7), 16, 4, ("between nodes", 4)),
        ((0, 4, 8, 12), 16, 4, ("between nodes", 1)),
        ((0, 2, 4, 6), 16, 4, ("between nodes", 2)),
        ((0, 2), 8, 4, ("inside nodes", 2)),
        # The group of rank 0 is inside a node, another one is not.
        ((0, 1, 2), 12, 4, ("between nodes", 1)),
        ((0, 1), 6, 3, ("between nodes", 1)),
    ],
)
def test_links(
    ranks: tuple[int, ...], world: int, per_node: int, expected: tuple[Link, int]
) -> None:
    assert link_of(ranks, world, per_node) == expected


def plan(*overrides: str) -> TrainConfig:
    short = ("data.sequence_length=512", "data.micro_batch=1")
    return compose([*overrides, *short], name="estimate")


def volume(config: TrainConfig, *words: str) -> float:
    """Bytes of all flows whose name has one of the words."""
    flows = estimate(config).flows
    return sum(f.bytes for f in flows if any(word in f.purpose.name for word in words))


def test_volumes_of_fsdp() -> None:
    config = plan("model=llama_1b", "cluster.nodes=4", "data.global_batch=32")
    assert passes(config.data, Layout(shard=16)) == 2
    count = parameter_count(config.model)
    blocks = count - config.model.width * (config.model.vocab_size + 1)
    ring = 15 / 16
    # Tied embeddings travel in float32, and stay gathered until the end of the backward pass.
    forward = 2 * blocks + 4 * (count - blocks)
    assert volume(config, "all-gather, forward") == pytest.approx(2 * ring * forward)
    assert volume(config, "all-gather, backward") == pytest.approx(2 * ring * 2 * blocks)
    assert volume(config, "reduce-scatter") == pytest.approx(2 * ring * 4 * count)
    whole = replace(config, engine=replace(config.engine, accumulate="whole"))
    assert volume(whole, "reduce-scatter") == pytest.approx(ring * 4 * count)
    kept = replace(config, engine=replace(config.engine, reshard_after_forward=False))
    assert volume(kept, "all-gather, backward") == 0
    hybrid = replace(config, engine=replace(config.engine, shard=4, replicate=4))
    assert volume(hybrid, "all-reduce") == pytest.approx(2 * (3 / 4) * 4 * count / 4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_volumes_of_zero(stage: int) -> None:
    config = plan(
        *("model=llama_1b", "cluster.nodes=4", "data.global_batch=48", "engine=deepspeed"),
        f"engine.zero_stage={stage}",
    )
    whole = 4 * parameter_count(config.model) * 15 / 16
    expected = {1: 2 * whole + whole, 2: 3 * 2 * whole + whole, 3: 3 * 3 * whole}
    assert volume(config, "ZeRO") == pytest.approx(expected[stage])


@pytest.mark.parametrize("engine", ["engine.shard=2", "engine.tensor=2", "engine.context=2"])
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_work_is_the_models(engine: str, recompute: str) -> None:
    config = plan(
        *("model=llama_1b", "model.layers=5", "cluster.nodes=1", "cluster.devices_per_node=2"),
        *(engine, f"engine.recompute={recompute}", "data.global_batch=8"),
    )
    layout, model, length = Layout.of(config.engine, 2), config.model, config.data.sequence_length
    count = passes(config.data, layout)
    found = list(trace(config, layout, count, grouped=True).order(model.layers, count))
    tokens = config.data.global_batch * length / 2
    attention = model.layers * 2 * model.heads * model.head_dim * (length + 1)
    products = forward_flops_per_token(model, length, causal=True) - attention
    # The backward pass of a causal kernel is two and a half times its forward pass. Recomputation
    # stops before the last product of a block, whose result the backward pass does not need.
    again = 0, 0
    if recompute == "block":
        head, down = 2 * model.width * model.vocab_size, 2 * model.width * model.ffn
        again = products - head - model.layers * down, attention
    work = [s.segment.work for s in found]
    assert sum(w.products for w in work) == pytest.approx(tokens * (3 * products + again[0]))
    assert sum(w.attention for w in work) == pytest.approx(tokens * (3.5 * attention + again[1]))
