"""Causal attention by one of several kernels, if wished within documents only.

Dimensions: B sequences, T positions, N documents, H query heads, G key and value heads, D size of a
head.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_pretrain.model import flash


class Documents(NamedTuple):
    """Where the documents of a batch begin, in the two forms that kernels ask for."""

    ids: Tensor
    """int32 (B, T): number of the document within its row, from 0."""
    offsets: Tensor
    """int32 (P + 1,), P the next power of two from N: where each of the N documents begins when the
    rows are laid end to end, then B * T. Every row begins one. The rest are empty documents, so
    that few sizes occur and little is compiled anew."""

    def to(self, device: torch.device) -> "Documents":
        """On the device; the host does not wait for the copies."""
        return Documents(*(_send(x, device) for x in self))


def documents_of(tokens: Tensor, end_of_text: int) -> Documents:
    """The documents of int64 (B, T) in host memory: one begins after each `end_of_text`."""
    starts = torch.zeros_like(tokens, dtype=torch.bool)  # (B, T)
    starts[:, 0] = True
    starts[:, 1:] = tokens[:, :-1] == end_of_text
    found = starts.flatten().nonzero().squeeze(1)  # (N,)
    padded = 1 << (len(found) - 1).bit_length()
    offsets = torch.full((padded + 1,), tokens.numel(), dtype=torch.int32)
    offsets[: len(found)] = found
    return Documents((starts.cumsum(1) - 1).to(torch.int32), offsets)


class Backend(Protocol):
    """A kernel for causal attention."""

    name: str

    def mask(self, documents: Documents | None, length: int) -> Any:
        """What the kernel needs to know of documents on its device; None where all is one text.

        Made once per forward pass, outside the compiled blocks. `length`: T, of whole sequences.
        """
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """q (B, T, H, D), k and v (B, T, G, D) -> (B, T, H, D). Raises if it cannot."""
        ...


class ScaledDotProduct:
    """torch's scaled_dot_product_attention, held to one kernel: it raises rather than take another.

    Documents make a boolean mask (B, 1, T, T).
    """

    def __init__(
        self, name: str, kernel: SDPBackend | None = None, *, grouped: bool = True
    ) -> None:
        """`kernel`: None leaves the choice to torch and to its context managers.

        `grouped`: it takes fewer heads of keys and values than of queries.
        """
        self.name = name
        self._kernel = kernel
        self._grouped = grouped

    def mask(self, documents: Documents | None, length: int) -> Any:
        """Boolean (B, 1, T, T), True where a query may look."""
        if documents is None:
            return None
        return dense_mask(documents, length)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """As `Backend` says."""
        groups = q.shape[2] // k.shape[2]
        if groups > 1 and not self._grouped:
            k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))  # (B, T, H, D)
        with nullcontext() if self._kernel is None else sdpa_kernel(self._kernel):
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2),  # (B, H, T, D)
                k.transpose(1, 2),  # (B, G, T, D)
                v.transpose(1, 2),  # (B, G, T, D)
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=k.shape[2] < q.shape[2],
            )
        return y.transpose(1, 2)


class TorchFlash(ScaledDotProduct):
    """torch's FlashAttention: documents as offsets on CUDA, as a boolean mask on a CPU."""

    def __init__(self) -> None:
        super().__init__("flash", SDPBackend.FLASH_ATTENTION)
        self._packed: flash.AttendPacked | None = None

    def mask(self, documents: Documents | None, length: int) -> Any:
        """On a CPU boolean (B, 1, T, T), else the offsets."""
        if documents is None or documents.ids.device.type == "cpu":
            return super().mask(documents, length)
        _check(documents, length)
        self._packed = self._packed or flash.load_torch()
        return documents.offsets

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """As `Backend` says."""
        if mask is None or mask.dtype == torch.bool:
            return super().__call__(q, k, v, mask)
        packed = self._packed or flash.load_torch()
        return packed(q, k, v, mask)


class FlashPackage:
    """A package of FlashAttention; imported when it is first used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded: tuple[flash.Attend, flash.AttendPacked] | None = None

    def load(self) -> tuple[flash.Attend, flash.AttendPacked]:
        """The kernels, without and with offsets. Raises MissingKernelError."""
        if self._loaded is None:
            self._loaded = flash.load(self.name)
        return self._loaded

    def mask(self, documents: Documents | None, length: int) -> Any:
        """The offsets."""
        # Here, where no compiler watches the import.
        self.load()
        if documents is None:
            return None
        _check(documents, length)
        return documents.offsets

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """As `Backend` says."""
        dense, packed = self.load()
        return dense(q, k, v) if mask is None else packed(q, k, v, mask)


class Flex:
    """torch's flex_attention, which skips the blocks between documents.

    On CUDA it is compiled. On a CPU torch has no backward pass for it, so a model can be evaluated
    there but not trained.
    """

    name = "flex"

    def __init__(self) -> None:
        # Late, since it brings the compiler's modules along.
        from torch.nn.attention import flex_attention  # noqa: PLC0415

        attend, mask = flex_attention.flex_attention, flex_attention.create_block_mask
        self._compiled = torch.compile(attend), torch.compile(mask)
        self._plain = flash.untraced(attend), flash.untraced(mask)

    def mask(self, documents: Documents | None, length: int) -> Any:
        """A BlockMask of shape (B, 1, T, T)."""
        if documents is None:
            return None
        _check(documents, length)
        ids = documents.ids

        def within(b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (ids[b, query] == ids[b, key])

        _, make = self._functions(ids.device)
        return make(within, len(ids), None, length, length, device=ids.device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """As `Backend` says."""
        attend, make = self._functions(q.device)
        if mask is None:
            # Each block makes its own, since `mask` does not learn the device.
            mask = make(_causal, None, None, q.shape[1], q.shape[1], device=q.device)
        y: Tensor = attend(
            q.transpose(1, 2),  # (B, H, T, D)
            k.transpose(1, 2),  # (B, G, T, D)
            v.transpose(1, 2),  # (B, G, T, D)
            block_mask=mask,
            enable_gqa=k.shape[2] < q.shape[2],
        )
        return y.transpose(1, 2)

    def _functions(self, device: torch.device) -> tuple[Any, Any]:
        return self._compiled if device.type == "cuda" else self._plain


def backend(name: str) -> Backend:
    """The kernel of that name, one of `ModelConfig.attention`.

    Nothing is imported or tried yet: `llm_pretrain.engine.trial` finds out whether it works here,
    and chooses for a run. Under the name auto: the one that torch takes by itself.
    """
    if name in flash.PACKAGES:
        return FlashPackage(name)
    makers: dict[str, Callable[[], Backend]] = {
        "auto": lambda: ScaledDotProduct(name),
        "cudnn": lambda: ScaledDotProduct(name, SDPBackend.CUDNN_ATTENTION),
        "efficient": lambda: ScaledDotProduct(name, SDPBackend.EFFICIENT_ATTENTION, grouped=False),
        "math": lambda: ScaledDotProduct(name, SDPBackend.MATH),
        "flash": TorchFlash,
        "flex": Flex,
    }
    if name not in makers:
        raise ValueError(f"no attention backend is called {name!r}")
    return makers[name]()


def dense_mask(documents: Documents, length: int) -> Tensor:
    """Boolean (B, 1, T, T), True where the query (third) may look at the key (fourth)."""
    _check(documents, length)
    ids = documents.ids[:, None]  # (B, 1, T)
    same = ids[..., :, None] == ids[..., None, :]  # (B, 1, T, T)
    return same.tril_()


def _causal(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _check(documents: Documents, length: int) -> None:
    if documents.ids.shape[1] != length:
        raise ValueError(
            f"documents of sequences of {documents.ids.shape[1]} tokens for attention over {length}"
        )


def _send(x: Tensor, device: torch.device) -> Tensor:
    # From ordinary memory the copy would wait for the kernels before it.
    host = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
    return host.to(device, non_blocking=True)
