"""Attention as it is defined, inputs for it, and whether a kernel computes the same."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from llm_pretrain.model.attention import Backend, documents_of

END = 0
LENGTH = 37
MASKED = pytest.mark.parametrize("masked", [False, True])
GROUPED = pytest.mark.parametrize("kv_heads", [4, 2, 1])
Tensors = tuple[Tensor, ...]


def segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One text in float64, one head at a time: q (t, H, D), k and v (t, G, D) -> (t, H, D)."""
    groups = q.shape[1] // k.shape[1]
    heads = []
    for h in range(q.shape[1]):
        a, b, c = q[:, h].double(), k[:, h // groups].double(), v[:, h // groups].double()
        scores = a @ b.T / a.shape[1] ** 0.5
        weights = scores.exp() * torch.ones_like(scores).tril()
        heads.append(weights / weights.sum(1, keepdim=True) @ c)
    return torch.stack(heads, dim=1)


def truth(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor | None) -> Tensor:
    """Each document of each row for itself."""
    rows = []
    for b in range(len(q)):
        row = [END + 1] * q.shape[1] if tokens is None else tokens[b].tolist()
        ends = [t + 1 for t, token in enumerate(row) if token == END or t + 1 == len(row)]
        begins = [0, *ends[:-1]]
        parts = [slice(a, z) for a, z in zip(begins, ends, strict=True)]
        rows.append(torch.cat([segment(q[b, s], k[b, s], v[b, s]) for s in parts]))
    return torch.stack(rows)


def some_tokens(seed: int = 0, length: int = LENGTH) -> Tensor:
    """Three rows; ends of text also first, last, and two in a row; none in the last row."""
    tokens = torch.randint(8, (3, length), generator=torch.Generator().manual_seed(seed))
    tokens[0, [0, 7, 8, length - 1]] = END
    tokens[2] = END + 1
    return tokens


def inputs(kv_heads: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(3, LENGTH, heads, 16, generator=generator).to(dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    )
    return q, k, v


def call(kernel: Backend, given: tuple[Tensor, Tensor, Tensor], tokens: Tensor | None) -> Tensor:
    documents = None if tokens is None else documents_of(tokens, END)
    return kernel(*given, kernel.mask(documents, LENGTH))


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """What others compiled in this process neither helps nor harms."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same_gradients(found: Tensor, right: Tensor, given: Sequence[Tensor], upper: Tensor) -> None:
    """The gradients of `given` are the truth's; `upper`: the output's, in float64."""
    theirs = torch.autograd.grad(right, given, upper)
    for mine, other in zip(torch.autograd.grad(found, given, upper.float()), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def check(kernel: Backend, kv_heads: int, masked: bool) -> None:
    """Output and gradients are the truth's."""
    tokens = some_tokens() if masked else None
    given = inputs(kv_heads)
    found, right = call(kernel, given, tokens), truth(*given, tokens)
    gradient = torch.randn(right.shape, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)
    same_gradients(found, right, given, gradient)
