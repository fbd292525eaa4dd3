"""Estimates beside runs that others have measured and published."""

from dataclasses import dataclass

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.estimate.plan import estimate


@dataclass(frozen=True)
class Published:
    """A run that others have measured.

    The estimate leaves out what makes a run slower than its arithmetic, traffic and memory allow
    (launch overhead, stragglers, power limits), so it must not be below what has been reached with
    the same model, sequence, micro-batch and number of devices. How far above it may be is what
    it is worth.
    """

    overrides: tuple[str, ...]
    rate: float
    """Tokens a second and device."""
    ceiling: float
    """The estimate's largest multiple of it."""


TORCHTITAN = (
    *("model=llama_8b", "cluster=h100_ib", "data.sequence_length=8192", "data.global_batch=16"),
    *("data.micro_batch=2", "cluster.hardware.memory_bandwidth=2400"),
)
"""8B on 8 H100 with HBM2e and a limit of 500 W, not compiled, with selective recomputation
(benchmarks/llama3_h100_202412_torchtitan.md)."""
PUBLISHED = {
    # Technical report: the same tensor parallelism, but pipelines where we shard. Of our layouts,
    # the fastest one that the README lists.
    "Apertus 70B, 4096 GH200": Published(
        (
            *("model=llama_70b", "engine.shard=64", "engine.tensor=4", "cluster.nodes=1024"),
            "engine.reshard_after_forward=false",
        ),
        rate=723,
        ceiling=1.25,
    ),
    # README of swiss-ai/lsaie-ss26-gipfelsturm: Megatron, GPT-2's vocabulary.
    "8B, GH200": Published(
        (
            *("model=llama_8b", "model.vocab_size=50304", "data.global_batch=8"),
            *("data.micro_batch=2", "engine.recompute=none"),
        ),
        rate=10_882,
        ceiling=1.15,
    ),
    # No run is faster than one that recomputes nothing. The power limit is most of the ceiling.
    "8B, 8 H100": Published((*TORCHTITAN, "engine.recompute=none"), rate=5_762, ceiling=1.75),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_published_run_is_faster(name: str) -> None:
    run = PUBLISHED[name]
    speed = estimate(compose(run.overrides, name="estimate")).speed
    assert speed is not None
    assert run.rate <= speed.tokens_per_second <= run.ceiling * run.rate


def test_a_published_run_needs_more_memory_than_full_recomputation_and_less_than_none() -> None:
    memory = estimate(compose(TORCHTITAN, name="estimate")).memory
    assert memory["block"].device < 82.4 * 2**30 < memory["none"].device
