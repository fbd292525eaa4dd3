"""The decoder: embedding, blocks of attention and SwiGLU, output head. It knows no parallelism.

Dimensions: B sequences, T positions, C width, H query heads, G key and value heads, D size of a
head, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm_pretrain.config.schema import ModelConfig


class Norm(nn.Module):
    """RMSNorm over the last dimension, in float32 whatever the dtype around it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size), in the dtype of x."""
        weight = self.weight.float()
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


class CausalAttention(nn.Module):
    """Each position's mixture of the values up to it. No parameters: a place to put parallelism."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, T, H, D), keys and values (B, T, G, D) -> (B, T, H, D)."""
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),  # (B, H, T, D)
            k.transpose(1, 2),  # (B, G, T, D)
            v.transpose(1, 2),  # (B, G, T, D)
            is_causal=True,
            enable_gqa=k.shape[2] < q.shape[2],
        )
        return y.transpose(1, 2)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; groups of query heads share a key head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(config.width, queries, bias=False)
        self.k = nn.Linear(config.width, keys, bias=False)
        self.v = nn.Linear(config.width, keys, bias=False)
        self.out = nn.Linear(queries, config.width, bias=False)
        self.mix = CausalAttention()
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = Norm(config.head_dim, config.norm_eps)
            self.k_norm = Norm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); cos and sin as made by `rope_tables`."""
        q: Tensor = self.q(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)
        k: Tensor = self.k(x).unflatten(-1, (-1, self.head_dim))  # (B, T, G, D)
        v: Tensor = self.v(x).unflatten(-1, (-1, self.head_dim))  # (B, T, G, D)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y: Tensor = self.mix(q, k, v)  # (B, T, H, D)
        mixed: Tensor = self.out(y.flatten(2))  # (B, T, H * D) -> (B, T, C)
        return mixed


class SwiGLU(nn.Module):
    """The position-wise network: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn, bias=False)
        self.up = nn.Linear(config.width, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Block(nn.Module):
    """Attention, then SwiGLU, each on a normalized copy of the residual stream it adds to."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = Norm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """The language model. Its parameters mean nothing before `initialize` or load_state_dict."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Norm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.recompute = False
        """Keep only the blocks' inputs for the backward pass, and compute the rest again."""
        self.tie()

    def forward(self, tokens: Tensor, targets: Tensor | None = None, first: int = 0) -> Tensor:
        """Logits (B, T, V), or with targets the loss of each token.

        Args:
            tokens: int64 (B, T).
            targets: int64 (B, T), the token to predict at each position; -100 counts as loss 0.
            first: position of the first token, for a part of a longer sequence.

        Returns:
            Logits (B, T, V); with targets, the negative log likelihood in nats, float32 (B, T).
        """
        config = self.config
        # Both are made anew in every pass, since a few small kernels are cheaper than state that
        # meta devices, inference mode or fake tensors could spoil.
        last = first + tokens.shape[1]
        cos, sin = rope_tables(last, config.head_dim, config.rope_theta, tokens.device)
        cos, sin = cos[first:], sin[first:]  # (T, 1, D / 2)
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            if self.recompute:
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))  # (B, T, V)
        if targets is None:
            return logits
        # Class dimension second, (B, V, T), would be strided; flat rows are not.
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        # A copy, since FSDP's backward hooks do not survive in-place operations on a view.
        return nll.view_as(targets).clone()  # (B, T)

    def initial_values(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Name and full initial value, float32 on the CPU, of each parameter in order of name.

        Matrices are N(0, init_std); those that write into the residual stream are divided by
        sqrt(2 L), so that its variance does not grow with depth; norms are 1. Values depend on
        the seed and the config alone, so that a sharded model can take its part of each.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, parameter in sorted(self.named_parameters()):
            if parameter.ndim == 1:
                yield name, torch.ones(parameter.shape, device="cpu")
                continue
            std = self.config.init_std
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                std /= math.sqrt(2 * self.config.layers)
            # In place, since of a large model one tensor takes gigabytes.
            yield name, torch.randn(parameter.shape, generator=generator, device="cpu").mul_(std)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Set every parameter to its `initial_values`; the global generators are untouched."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_values(seed):
            parameters[name].copy_(value)

    def tie(self) -> None:
        """Make head and embedding one parameter again, if they are tied and one was replaced."""
        if self.config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # to_empty() and moves between kinds of device replace each parameter by a new one, once
        # per module that holds it, which would part the head from the embedding.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tie()
        return self


def rope_tables(
    length: int, head_dim: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position times frequency, float32 (T, 1, D / 2) each.

    Pair i turns by theta^(-2 i / D) radians per position.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * (1.0 / theta**exponents)  # (T, D / 2)
    return angles.cos()[:, None], angles.sin()[:, None]  # (T, 1, D / 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of each head, in float32; (B, T, H, D) -> (B, T, H, D).

    Halves are paired as in Hugging Face's Llama, so weights are exchanged without permuting rows.
    """
    a, b = x.float().chunk(2, dim=-1)  # (B, T, H, D / 2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
