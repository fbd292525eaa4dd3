"""The decoder: embedding, blocks of attention and SwiGLU, output head. It knows no parallelism.

Dimensions: B sequences, T positions, C width, H query heads, G key and value heads, D size of a
head, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm_pretrain.config.engine import Recompute
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.attention import Backend, Documents, backend
from llm_pretrain.model.loss import Head, losses_of, product_dtype
from llm_pretrain.model.recompute import contexts


class Positions(NamedTuple):
    """What each block needs to know of where its tokens are."""

    cos: Tensor
    """float32 (T, 1, D / 2), like `sin`; as made by `rope_tables`."""
    sin: Tensor
    mask: Any
    """As the attention backend makes it from the documents."""


class Norm(nn.Module):
    """RMSNorm over the last dimension, in float32 whatever the dtype around it.

    Matrix products follow, so the result is in their dtype: cast here it is cast once, and kept
    once for the backward pass, instead of by each of them.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size), in the dtype of products."""
        weight = self.weight.float()
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(product_dtype(x))


class CausalAttention(nn.Module):
    """Each position's mixture of the values up to it. No parameters: a place to put parallelism."""

    def __init__(self, kernel: Backend) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """Queries (B, T, H, D), keys and values (B, T, G, D) -> (B, T, H, D)."""
        return self.kernel(q, k, v, mask)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; groups of query heads share a key head."""

    def __init__(self, config: ModelConfig, kernel: Backend) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(config.width, queries, bias=False)
        self.k = nn.Linear(config.width, keys, bias=False)
        self.v = nn.Linear(config.width, keys, bias=False)
        self.out = nn.Linear(queries, config.width, bias=False)
        self.mix = CausalAttention(kernel)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = Norm(config.head_dim, config.norm_eps)
            self.k_norm = Norm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        cos, sin, mask = positions
        q: Tensor = self.q(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)
        k: Tensor = self.k(x).unflatten(-1, (-1, self.head_dim))  # (B, T, G, D)
        v: Tensor = self.v(x).unflatten(-1, (-1, self.head_dim))  # (B, T, G, D)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y: Tensor = self.mix(q, k, v, mask)  # (B, T, H, D)
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

    def __init__(self, config: ModelConfig, kernel: Backend) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width, config.norm_eps)
        self.attention = Attention(config, kernel)
        self.mlp_norm = Norm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)
        self.recompute: Recompute = "none"
        self.products: Callable[[], AbstractContextManager[Any]] = nullcontext
        """What the block computes in, the second time too, for which torch restores only its own
        autocast."""

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.recompute == "none":
            return self._run(x, positions)
        # In here, so that a compiled block sees what is to be kept.
        y: Tensor = checkpoint(
            self._run,
            x,
            positions,
            use_reentrant=False,
            preserve_rng_state=False,
            **contexts(self.recompute),
        )
        return y

    def _run(self, x: Tensor, positions: Positions) -> Tensor:
        with self.products():
            x = x + self.attention(self.attention_norm(x), positions)
            x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """The language model. Its parameters mean nothing before `initialize` or load_state_dict."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.kernel = backend(config.attention)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, self.kernel) for _ in range(config.layers))
        self.norm = Norm(config.width, config.norm_eps)
        self.head = Head(config.width, config.vocab_size)
        self.parts = 1
        """Ranks that share a sequence; attention sees what all of them have."""
        self.watched = False
        """Whether to find out `kurtosis`."""
        self.kurtosis: Tensor | None = None
        """Of each block's output (L,), of the last pass for training."""
        self.around: Callable[[int], AbstractContextManager[Any]] = _nothing
        """Entered around the block of that index."""
        self.tie()

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        first: int = 0,
        documents: Documents | None = None,
        *,
        mean: bool = False,
    ) -> Tensor:
        """Logits (B, T, V), or with targets the loss.

        Args:
            tokens: int64 (B, T).
            targets: int64 (B, T), the token to predict at each position; -100 counts as loss 0.
            first: position of the first token, for a part of a longer sequence.
            documents: of the whole sequences, if attention shall stay within them.
            mean: of all positions' losses rather than each.

        Returns:
            Logits (B, T, V); with targets, the negative log likelihood in nats, float32 (B, T), or
            its mean.
        """
        config = self.config
        # All are made anew in every pass, since a few small kernels are cheaper than state that
        # meta devices, inference mode or fake tensors could spoil.
        last = first + tokens.shape[1]
        cos, sin = rope_tables(last, config.head_dim, config.rope_theta, tokens.device)
        mask = self.kernel.mask(documents, self.parts * tokens.shape[1])
        positions = Positions(cos[first:], sin[first:], mask)
        x = self.embedding(tokens)  # (B, T, C)
        seen: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            with self.around(index):
                x = block(x, positions)
            if self.watched and mean:
                seen.append(_kurtosis(x))
        self.kurtosis = torch.stack(seen) if seen else None
        return self.output(self.norm(x), targets, mean=mean)

    def output(self, x: Tensor, targets: Tensor | None, *, mean: bool) -> Tensor:
        """What `forward` returns, from the last norm's result (B, T, C)."""
        if targets is None or self.head.rows is None:
            logits: Tensor = self.head(x)  # (B, T, V)
            return logits if targets is None else losses_of(logits, targets, mean=mean)
        losses: Tensor = self.head(x, targets, mean=mean)
        return losses

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


def _nothing(_index: int) -> AbstractContextManager[Any]:
    return nullcontext()


@torch.no_grad()
def _kurtosis(x: Tensor) -> Tensor:
    """Fourth moment over the squared second one of the channels, mean over tokens: (B, T, C)."""
    squares = x.float().square()
    return (squares.square().mean(-1) / squares.mean(-1).square()).mean()


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
