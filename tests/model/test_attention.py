"""Attention kernels against a softmax written out, each document alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_pretrain.model import flash
from llm_pretrain.model.attention import Backend, Documents, backend, documents_of
from tests.model.attention import (
    END,
    GROUPED,
    LENGTH,
    MASKED,
    call,
    check,
    fresh_compiler,
    inputs,
    some_tokens,
    truth,
)


@MASKED
@GROUPED
@pytest.mark.parametrize("name", ["flash", "math"])
def test_output_and_gradients(name: str, kv_heads: int, masked: bool) -> None:
    check(backend(name), kv_heads, masked)


@MASKED
@GROUPED
def test_flex_output(kv_heads: int, masked: bool) -> None:
    """On a CPU torch has no backward pass for it, and says so."""
    kernel, tokens = backend("flex"), some_tokens() if masked else None
    given = inputs(kv_heads)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        call(kernel, given, tokens)
    q, k, v = (x.detach() for x in given)
    found = call(kernel, (q, k, v), tokens)
    torch.testing.assert_close(found.double(), truth(q, k, v, tokens), rtol=1e-4, atol=1e-5)


@MASKED
@pytest.mark.parametrize("name", ["flash", "math"])
def test_bfloat16_stays_bfloat16(name: str, masked: bool) -> None:
    tokens = some_tokens() if masked else None
    given = inputs(2, torch.bfloat16)
    found = call(backend(name), given, tokens)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), truth(*given, tokens), rtol=2e-2, atol=2e-2)


@MASKED
@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_no_kernel_stands_in_for_another(name: str, masked: bool) -> None:
    with pytest.raises(RuntimeError, match="No viable backend"):
        call(backend(name), inputs(2), some_tokens() if masked else None)


@pytest.mark.parametrize("name", ["flash", "math", "flex"])
def test_documents_of_other_sequences_are_refused(name: str) -> None:
    documents = documents_of(some_tokens(), END)
    with pytest.raises(ValueError, match=f"sequences of {LENGTH} tokens for attention over 74"):
        backend(name).mask(documents, 2 * LENGTH)


def test_there_are_no_other_names() -> None:
    with pytest.raises(ValueError, match="'fastest'"):
        backend("fastest")


def by_loop(tokens: Tensor) -> tuple[list[list[int]], list[int]]:
    """Numbers and beginnings of documents, a token at a time."""
    ids: list[list[int]] = []
    begins: list[int] = []
    for b, row in enumerate(tokens.tolist()):
        ids.append([])
        for t, _ in enumerate(row):
            if t == 0 or row[t - 1] == END:
                begins.append(b * len(row) + t)
            ids[b].append(0 if t == 0 else ids[b][-1] + (row[t - 1] == END))
    return ids, begins


@pytest.mark.parametrize(
    "tokens",
    [
        [[1, 2, 3, 4]],
        [[END, 2, 3, 4]],
        [[1, 2, 3, END], [1, 2, 3, 4]],
        [[1, END, END, 4], [END, END, END, END]],
        [[END]],
        some_tokens().tolist(),
    ],
)
def test_documents(tokens: list[list[int]]) -> None:
    given = torch.tensor(tokens)
    found, (ids, begins) = documents_of(given, END), by_loop(given)
    assert found.ids.dtype == found.offsets.dtype == torch.int32
    assert found.ids.tolist() == ids
    size = next(2**n for n in range(20) if 2**n >= len(begins))
    assert found.offsets.tolist() == begins + [given.numel()] * (size + 1 - len(begins))


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 3), (3, 5), (4, 5), (5, 9), (9, 17)])
def test_few_sizes_of_offsets_occur(count: int, size: int) -> None:
    tokens = torch.ones(1, 40, dtype=torch.int64)
    tokens[0, : count - 1] = END
    assert len(documents_of(tokens, END).offsets) == size


def test_documents_travel_together() -> None:
    moved = documents_of(some_tokens(), END).to(torch.device("meta"))
    assert isinstance(moved, Documents)
    assert moved.ids.is_meta
    assert moved.offsets.is_meta


@GROUPED
def test_torch_takes_packed_sequences_on_other_devices(kv_heads: int) -> None:
    """This version's `varlen_attn` accepts the call, forwards and backwards; nothing is computed.

    It has kernels for CUDA only, so tensors without values must do.
    """
    attend = flash.load_torch()
    with FakeTensorMode():
        q, k, v = (
            torch.empty(3, LENGTH, heads, 16, dtype=torch.bfloat16, requires_grad=True)
            for heads in (4, kv_heads, kv_heads)
        )
        y = attend(q, k, v, torch.empty(17, dtype=torch.int32))
        gradients = torch.autograd.grad(y.sum(), (q, k, v))
    assert y.shape == q.shape
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]


def test_torch_flash_takes_offsets_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is no CPU: the meta device, for want of another."""
    seen: list[Tensor] = []

    def load() -> Callable[..., Tensor]:
        return lambda q, k, v, offsets: seen.append(offsets) or torch.zeros_like(q)

    monkeypatch.setattr(flash, "load_torch", load)
    kernel = backend("flash")
    documents = documents_of(some_tokens(), END).to(torch.device("meta"))
    q, k, v = (x.to("meta") for x in inputs(2))
    assert kernel(q, k, v, kernel.mask(documents, LENGTH)).shape == q.shape
    assert seen[0] is documents.offsets


class Block(nn.Module):
    """As much of a transformer's block as a compiler needs to see around attention."""

    def __init__(self, kernel: Backend) -> None:
        super().__init__()
        self.kernel = kernel
        self.project = nn.Linear(64, 64)

    def forward(self, x: Tensor, mask: Any) -> Tensor:
        q = self.project(x).unflatten(-1, (4, 16))
        k, v = q[:, :, :2].cos(), q[:, :, 2:].sin()
        return self.kernel(q, k, v, mask).flatten(2)


@MASKED
@pytest.mark.parametrize("name", ["flash", "math"])
def test_compiled_once_for_all_documents(name: str, masked: bool) -> None:
    kernel = backend(name)
    block = Block(kernel)
    x = torch.randn(3, LENGTH, 64)

    def gradients(seed: int) -> tuple[Tensor, ...]:
        documents = documents_of(some_tokens(seed), END) if masked else None
        y: Tensor = block(x, kernel.mask(documents, LENGTH))
        return (y, *torch.autograd.grad(y.square().sum(), list(block.parameters())))

    right = [gradients(seed) for seed in range(3)]
    with fresh_compiler():
        block.compile(fullgraph=True, backend="aot_eager")
        found = [gradients(0)]
        with torch.compiler.set_stance("fail_on_recompile"):
            found += [gradients(1), gradients(2)]
    torch.testing.assert_close(found, right)
    assert masked != found[0][0].equal(found[1][0])
