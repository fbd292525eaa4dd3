"""What blocks keep for the backward pass, in host memory while nobody needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class ActivationOffload:
    """Sends a block's activations away while the next one runs, and fetches them a block ahead.

    Called around each block of a forward pass, in order. The last block's stay: they are needed at
    once. Copies run on a stream of their own, from and to pinned memory, so that neither the host
    nor the computation waits as long as a block computes for longer than its activations travel.
    """

    LEAST: ClassVar[int] = 2**20
    """Bytes below which a tensor is not worth a copy."""

    def __init__(self, blocks: int, device: torch.device) -> None:
        self._last = blocks - 1
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        self._blocks: list[_Kept] = []

    @contextmanager
    def __call__(self, index: int) -> Iterator[None]:
        """While block `index` computes."""
        if index == 0:
            self._blocks = []
        if index == self._last or not torch.is_grad_enabled():
            yield
            return
        kept = _Kept()
        self._blocks.append(kept)
        with saved_tensors_hooks(lambda t: self._send(kept, t), lambda h: self._receive(index, h)):
            yield
        # Until here, so that no other tensor could come to lie where a sent one was.
        kept.sent.clear()

    def _send(self, kept: "_Kept", tensor: Tensor) -> "Tensor | _Place":
        own = tensor if tensor._base is None else tensor._base
        if isinstance(own, nn.Parameter) or tensor.nbytes < self.LEAST:
            return tensor
        # Several operations keep the same memory, as it is or seen in another shape: queries, keys
        # and values their common input, attention and the product after it what is between them.
        storage = tensor.untyped_storage()
        key = (storage, tensor.dtype)
        if key not in kept.sent:
            whole = tensor.detach().as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0)
            kept.sent[key] = (len(kept.host), tensor)
            kept.host.append(self._to_host(whole))
        view = (tensor.shape, tensor.stride(), tensor.storage_offset())
        return _Place(kept, kept.sent[key][0], view)

    def _receive(self, index: int, held: "Tensor | _Place") -> Tensor:
        if isinstance(held, Tensor):
            return held
        # Blocks come in reverse order: what the one after this had fetched is used up.
        for later in self._blocks[index + 1 :]:
            later.device = None
        self._fetch(index)
        if index > 0:
            self._fetch(index - 1)
        kept = held.kept
        assert kept.device is not None
        if kept.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(kept.arrived)
        return kept.device[held.number].as_strided(*held.view)

    def _to_host(self, tensor: Tensor) -> Tensor:
        if self._copies is None:
            return tensor.clone()
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._copies)
        return host

    def _fetch(self, index: int) -> None:
        kept = self._blocks[index]
        if kept.device is not None:
            return
        kept.device = self._to_device(kept.host)
        if self._copies is not None:
            kept.arrived = self._copies.record_event()

    def _to_device(self, host: list[Tensor]) -> list[Tensor]:
        if self._copies is None:
            return host
        with torch.cuda.stream(self._copies):
            tensors = [t.to(self._device, non_blocking=True) for t in host]
        for tensor in tensors:
            tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensors


class _Kept:
    """Of one block."""

    def __init__(self) -> None:
        self.sent: dict[Any, tuple[int, Tensor]] = {}
        """Index among `host` of the memory that a tensor lies in."""
        self.host: list[Tensor] = []
        self.device: list[Tensor] | None = None
        """All of them, once fetched."""
        self.arrived: torch.cuda.Event | None = None


class _Place(NamedTuple):
    """Where an activation is."""

    kept: _Kept
    number: int
    view: Any
    """Shape, strides and offset in the memory that was sent."""
