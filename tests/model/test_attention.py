"""Attention kernels against a softmax written out, each document alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_pretrain.model import flash
from llm_pretrain.model.attention import Backend, Documents, backend, documents_of

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


def check(kernel: Backend, kv_heads: int, masked: bool) -> None:
    """Output and gradients are the truth's."""
    tokens = some_tokens() if masked else None
    given = inputs(kv_heads)
    found, right = call(kernel, given, tokens), truth(*given, tokens)
    gradient = torch.randn(right.shape, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)
    theirs = torch.autograd.grad(right, given, gradient)
    for mine, other in zip(
        torch.autograd.grad(found, given, gradient.float()), theirs, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


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


def packed_by_segment(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """What a package's kernel does: (B * T, H, D) -> (B * T, H, D), empty documents skipped."""
    assert offsets.dtype == torch.int32
    bounds = offsets.tolist()
    parts = [slice(a, z) for a, z in zip(bounds, bounds[1:], strict=False) if z > a]  # noqa: RUF007
    assert bounds[0] == 0
    assert bounds[-1] == len(q)
    assert max(s.stop - s.start for s in parts) <= longest
    return torch.cat([segment(q[s], k[s], v[s]).to(q.dtype) for s in parts])


def rows(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    assert causal
    return truth(q, k, v, None).to(q.dtype)


def fa2() -> ModuleType:
    """Stands in for flash_attn 2.8: names and order of what it is called with."""
    module = ModuleType("flash_attn")

    def flash_attn_func(  # noqa: PLR0917
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: Any = None,
        causal: bool = False,
    ) -> Tensor:
        assert (dropout_p, softmax_scale) == (0.0, None)
        return rows(q, k, v, causal)

    def flash_attn_varlen_func(  # noqa: PLR0917
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: Any = None,
        causal: bool = False,
    ) -> Tensor:
        assert (dropout_p, softmax_scale, causal) == (0.0, None, True)
        assert (cu_seqlens_q, max_seqlen_q) == (cu_seqlens_k, max_seqlen_k)
        return packed_by_segment(q, k, v, cu_seqlens_q, max_seqlen_q)

    vars(module).update(locals())
    return module


def fa3() -> ModuleType:
    """Stands in for flash_attn_interface, an early one: with the softmax's sums."""
    module = ModuleType("flash_attn_interface")

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: Any = None, causal: bool = False
    ) -> Tensors:
        assert softmax_scale is None
        return rows(q, k, v, causal), torch.zeros(1)

    def flash_attn_varlen_func(  # noqa: PLR0917
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        seqused_q: Any = None,
        seqused_k: Any = None,
        softmax_scale: Any = None,
        causal: bool = False,
    ) -> Tensors:
        assert (seqused_q, seqused_k, softmax_scale, causal) == (None, None, None, True)
        assert (cu_seqlens_q, max_seqlen_q) == (cu_seqlens_k, max_seqlen_k)
        return packed_by_segment(q, k, v, cu_seqlens_q, max_seqlen_q), torch.zeros(1)

    vars(module).update(locals())
    return module


def fa4() -> ModuleType:
    """Stands in for flash_attn.cute of 4.0.0b36: queries for MLA come fourth, sums are returned."""
    module = ModuleType("flash_attn.cute")

    def flash_attn_func(  # noqa: PLR0917
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qv: Any = None,
        gather_kv_indices: Any = None,
        softmax_scale: Any = None,
        causal: bool = False,
    ) -> tuple[Tensor, None]:
        assert (qv, gather_kv_indices, softmax_scale) == (None, None, None)
        return rows(q, k, v, causal), None

    def flash_attn_varlen_func(  # noqa: PLR0917
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qv: Any = None,
        cu_seqlens_q: Any = None,
        cu_seqlens_k: Any = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        min_seqlen_k: int | None = None,
        softmax_scale: Any = None,
        causal: bool = False,
    ) -> tuple[Tensor, None]:
        assert (qv, min_seqlen_k, softmax_scale, causal) == (None, None, None, True)
        assert (cu_seqlens_q, max_seqlen_q) == (cu_seqlens_k, max_seqlen_k)
        assert max_seqlen_q is not None
        return packed_by_segment(q, k, v, cu_seqlens_q, max_seqlen_q), None

    vars(module).update(locals())
    return module


STANDINS = {"fa2": fa2, "fa3": fa3, "fa4": fa4}


@pytest.fixture(params=sorted(STANDINS))
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend whose package a stand-in takes the place of."""
    name: str = request.param
    monkeypatch.setitem(sys.modules, flash.PACKAGES[name].module, STANDINS[name]())
    return name


@MASKED
@GROUPED
def test_packages_are_called_as_they_ask(package: str, kv_heads: int, masked: bool) -> None:
    """Packing, offsets, arguments and results, with a stand-in for each package's functions.

    It has their signatures and computes a document at a time from the offsets. The kernels
    themselves need a GPU: on a CPU there is no other way.
    """
    check(backend(package), kv_heads, masked)


@MASKED
def test_a_package_in_a_compiled_block(package: str, masked: bool) -> None:
    """At most a graph break: the stand-ins ask tensors for numbers, as FA4 asks for addresses."""
    kernel, tokens, given = backend(package), some_tokens() if masked else None, inputs(2)
    mask = kernel.mask(None if tokens is None else documents_of(tokens, END), LENGTH)

    def block(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return 2 * kernel(3 * q, k, v, mask)

    with fresh_compiler():
        found = torch.compile(block, backend="aot_eager")(*given, mask)
    q, k, v = given
    right = 2 * truth(3 * q, k, v, tokens)
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)
    theirs = torch.autograd.grad(right.sum(), given)
    for mine, other in zip(torch.autograd.grad(found.sum(), given), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(flash.PACKAGES))
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = flash.Package("no-such-distribution", "no_such_module", None)
    monkeypatch.setitem(flash.PACKAGES, name, missing)
    kernel = backend(name)
    with pytest.raises(flash.MissingKernelError, match=f"{name}: .*no-such-distribution is not"):
        kernel.mask(None, LENGTH)
    with pytest.raises(flash.MissingKernelError, match="not installed"):
        kernel(*inputs(2), None)


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
