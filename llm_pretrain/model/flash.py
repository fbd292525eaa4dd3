"""FlashAttention over documents laid end to end: torch's own kernels and the packages'.

Dimensions: B sequences, T positions, N documents, H query heads, G key and value heads, D size of a
head.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.errors import UserError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (B, T, H, D), k and v (B, T, G, D) -> (B, T, H, D), causal."""
AttendPacked = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The same within the documents that begin at the offsets, int32 (N + 1,)."""


class MissingKernelError(UserError):
    """A package of attention kernels that is not installed, or cannot be imported."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"model.attention: {name}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Package:
    """Where a generation of FlashAttention is found."""

    distribution: str
    """As pip knows it."""
    module: str
    """Has flash_attn_func and flash_attn_varlen_func."""
    operator: str | None
    """What torch.compile can trace, if the package registered it; it does not look into others."""


PACKAGES = {
    "fa2": Package("flash-attn", "flash_attn", "flashattn::_flash_attn_forward"),
    "fa3": Package("flash-attn-3", "flash_attn_interface", "flash_attn_3::_flash_attn_forward"),
    "fa4": Package("flash-attn-4", "flash_attn.cute", None),
}


def load(name: str) -> tuple[Attend, AttendPacked]:
    """The kernels of `PACKAGES[name]`. Raises MissingKernelError with the reason."""
    package = PACKAGES[name]
    try:
        module = importlib.import_module(package.module)
        # The module is no proof: flash-attn-4 alone makes a flash_attn without functions.
        dense, packed = module.flash_attn_func, module.flash_attn_varlen_func
    except Exception as error:  # a broken installation may raise anything
        raise MissingKernelError(name, _why(package, error)) from error
    if package.operator is None or not _registered(package.operator):
        dense, packed = untraced(dense), untraced(packed)
    return adapt(dense), adapt_packed(packed)


def adapt(function: Callable[..., Any]) -> Attend:
    """A package's flash_attn_func with its generation's manners taken off."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # By name: after v, the three differ in what follows.
        return _output(function(q, k, v, causal=True))

    return attend


def adapt_packed(function: Callable[..., Any]) -> AttendPacked:
    """A package's flash_attn_varlen_func for rows of equal length, cut at offsets."""

    def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        length = q.shape[1]
        y = function(
            q.flatten(0, 1),  # (B * T, H, D)
            k.flatten(0, 1),  # (B * T, G, D)
            v.flatten(0, 1),  # (B * T, G, D)
            cu_seqlens_q=offsets,
            cu_seqlens_k=offsets,
            # The most that a document can have, not what this batch has: a number from the
            # device would have to be waited for, and each new one would be compiled for.
            max_seqlen_q=length,
            max_seqlen_k=length,
            causal=True,
        )
        return _output(y).view(q.shape)

    return attend


def load_torch() -> AttendPacked:
    """torch's FlashAttention for CUDA, by `varlen_attn`."""
    # Late, since it brings the compiler's modules along.
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.11 has none

    def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        length, groups = q.shape[1], q.shape[2] // k.shape[2]
        options: dict[str, Any] = {}
        if groups > 1:
            if grouped:
                options["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))  # (B, T, H, D)
        y = varlen_attn(
            q.flatten(0, 1),  # (B * T, H, D)
            k.flatten(0, 1),  # (B * T, G, D)
            v.flatten(0, 1),  # (B * T, G, D)
            offsets,
            offsets,
            length,
            length,
            window_size=(-1, 0),  # causal
            **options,
        )
        return _output(y).view(q.shape)

    return attend


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same; torch.compile breaks its graph there instead of looking inside."""
    wrapped: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return wrapped


def _output(returned: Any) -> Tensor:
    """FA4 and early FA3 return the logarithms of the softmax's sums too."""
    y: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return y


def _registered(operator: str) -> bool:
    space, name = operator.split("::")
    return hasattr(getattr(torch.ops, space), name)


def _why(package: Package, error: Exception) -> str:
    try:
        version = metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        return f"package {package.distribution} is not installed"
    first = (str(error).splitlines() or [""])[0]
    return f"{package.distribution} {version} cannot be used: {type(error).__name__}: {first}"
