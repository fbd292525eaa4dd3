"""What the kernels of FlashAttention's packages are called with, and that they are not needed."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_pretrain.model import flash
from llm_pretrain.model.attention import backend, documents_of
from tests.model.attention import (
    END,
    GROUPED,
    LENGTH,
    MASKED,
    Tensors,
    check,
    fresh_compiler,
    inputs,
    same_gradients,
    segment,
    some_tokens,
    truth,
)

Lengths = tuple[Tensor | None, int | None]
"""Offsets of the documents, and the longest one."""


def packed(q: Tensor, k: Tensor, v: Tensor, queries: Lengths, keys: Lengths) -> Tensor:
    """What a package's kernel does: (B * T, H, D) -> (B * T, H, D), empty documents skipped."""
    assert queries == keys
    offsets, longest = queries
    assert offsets is not None
    assert longest is not None
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
        return packed(q, k, v, (cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k))

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
        lengths = (cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)
        return packed(q, k, v, *lengths), torch.zeros(1)

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
        return packed(q, k, v, (cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)), None

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
    same_gradients(found, right, given, torch.ones_like(right))


@pytest.mark.parametrize("name", sorted(flash.PACKAGES))
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = flash.Package("no-such-distribution", "no_such_module", None)
    monkeypatch.setitem(flash.PACKAGES, name, missing)
    kernel = backend(name)
    with pytest.raises(flash.MissingKernelError, match=f"{name}: .*no-such-distribution is not"):
        kernel.mask(None, LENGTH)
    with pytest.raises(flash.MissingKernelError, match="not installed"):
        kernel(*inputs(2), None)
