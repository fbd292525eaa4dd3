"""FLOPs: against torch's counter of executed operations, and the paper's published numbers."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.flops import flops_per_token, forward_flops_per_token
from llm_pretrain.model.transformer import Transformer

SMALL = ModelConfig(
    vocab_size=61, width=24, layers=2, heads=4, kv_heads=4, head_dim=6, ffn=40, norm_eps=1e-5
)
CONFIGS = {
    "multi-head": SMALL,
    "grouped": replace(SMALL, kv_heads=2),
    "one key head": replace(SMALL, kv_heads=1),
    "untied": replace(SMALL, tied_embeddings=False),
    "qk-norm": replace(SMALL, qk_norm=True, kv_heads=2),
    "wide heads": replace(SMALL, head_dim=14),
    "deep": replace(SMALL, layers=5, ffn=8),
}


def paper_flops_per_sequence(config: ModelConfig, sequence_length: int) -> int:
    """Training operations per sequence as Haegele et al. (2024) count them in their figures.

    Unlike `flops_per_token`, this takes the embedding for a matrix product and adds 3 operations
    per score for the softmax; attention is not halved. The paper sets V = 50257, the vocabulary
    before padding, so pass a config with that `vocab_size` to get its numbers.
    """
    d, s = config.width, sequence_length
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    embedding_and_head = 2 * (2 * s * config.vocab_size * d)
    projections = 2 * s * d * (queries + 2 * keys) + 2 * s * queries * d
    attention = 4 * s * s * queries + 3 * config.heads * s * s
    ffn = 2 * s * 3 * d * config.ffn
    return 3 * (embedding_and_head + config.layers * (projections + attention + ffn))


def paper(width: int, layers: int, heads: int, ffn: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50257,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=64,
        ffn=ffn,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("batch", "length"), [(1, 16), (3, 7)])
def test_equals_the_operations_torch_executes(name: str, batch: int, length: int) -> None:
    # The math backend runs attention as matrix products over the full square, which the counter
    # sees; the embedding's lookup and its gradient are no products, also where it is tied.
    config = CONFIGS[name]
    model = Transformer(config)
    tokens = torch.randint(config.vocab_size, (batch, length))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(tokens, tokens).mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = forward_flops_per_token(config, length, causal=False) * batch * length
    assert forward.get_total_flops() == expected
    assert backward.get_total_flops() == 2 * expected
    assert flops_per_token(config, length, causal=False) * batch * length == 3 * expected


@pytest.mark.parametrize("length", [1, 2, 9])
def test_causal_counts_the_pairs_below_the_diagonal(length: int) -> None:
    config = CONFIGS["grouped"]
    full = forward_flops_per_token(config, length, causal=False) * length
    causal = forward_flops_per_token(config, length, causal=True) * length
    above = sum(1 for query in range(length) for key in range(length) if key > query)
    per_pair = 2 * 2 * config.layers * config.heads * config.head_dim
    assert full - causal == above * per_pair


@pytest.mark.parametrize(
    ("config", "flops"),
    [
        (paper(384, 8, 6, 1024), 171_834_605_568),
        (paper(768, 12, 12, 2048), 527_392_309_248),
        (paper(768, 24, 12, 2048), 817_642_340_352),
        (paper(1024, 24, 16, 2816), 1_341_445_373_952),
    ],
    ids=["33m", "124m", "210m", "360m"],
)
def test_papers_numbers(config: ModelConfig, flops: int) -> None:
    assert paper_flops_per_sequence(config, 512) == flops


def test_difference_to_the_paper_is_what_the_docstring_says() -> None:
    config, s = paper(384, 8, 6, 1024), 512
    lookup = 2 * s * config.vocab_size * config.width
    softmax = config.layers * 3 * config.heads * s * s
    ours = flops_per_token(config, s, causal=False) * s
    assert paper_flops_per_sequence(config, s) - ours == 3 * (lookup + softmax)


def test_needs_no_torch() -> None:
    code = "import sys, llm_pretrain.model.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
