"""What a model costs, in closed form: parameters and floating-point operations. Needs no torch.

A product of an (a, b) and a (b, c) matrix counts 2abc operations; norms, RoPE, softmax and the
embedding's lookup count nothing.
"""

from llm_pretrain.config.schema import ModelConfig


def parameter_count(config: ModelConfig) -> int:
    """Number of trained parameters; a tied embedding counts once."""
    d, queries, keys = _widths(config)
    norms = 2 * d + (2 * config.head_dim if config.qk_norm else 0)
    block = 2 * d * queries + 2 * d * keys + 3 * d * config.ffn + norms
    embeddings = config.vocab_size * d * (1 if config.tied_embeddings else 2)
    return embeddings + config.layers * block + d


def forward_flops_per_token(config: ModelConfig, sequence_length: int, causal: bool) -> int:
    """Floating-point operations of one forward pass, per token, output head included.

    Args:
        config: the model.
        sequence_length: tokens per sequence (T), which attention's share grows with.
        causal: count the (T + 1) / 2 keys that a position attends to on average, as a kernel
            that skips masked blocks does; otherwise all T, the usual convention for MFU.
    """
    d, queries, keys = _widths(config)
    matrices = 2 * d * queries + 2 * d * keys + 3 * d * config.ffn
    # Scores and the weighted sum of values: 2 products of 2 operations per key and channel.
    attention = 2 * queries * (sequence_length + 1) if causal else 4 * queries * sequence_length
    return config.layers * (2 * matrices + attention) + 2 * d * config.vocab_size


def flops_per_token(config: ModelConfig, sequence_length: int, causal: bool) -> int:
    """Floating-point operations of training on one token: three forward passes.

    The backward pass needs two products for each one of the forward pass, one for the gradient of
    either factor. Recomputed activations are not counted. Arguments as for
    `forward_flops_per_token`.
    """
    return 3 * forward_flops_per_token(config, sequence_length, causal)


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """Sizes of the residual stream, of all queries, and of all keys (or values)."""
    return config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
