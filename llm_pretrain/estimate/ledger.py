"""Writes down what a traced step allocates, frees, sends and computes, operation by operation."""

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# What torch's notes on extending it describe, and FlopCounterMode is made of: the only way to see
# each operation, those of the backward pass included.
from torch.utils._python_dispatch import TorchDispatchMode

from llm_pretrain.estimate.operation import Collective, Operation, fakes, local, nbytes

_PROPAGATION = "torch/distributed/tensor/_sharding_prop.py"
"""Where DTensor works out how a result is cut. If it moved, memory would be counted for tensors
that are never made, which tests/estimate/test_memory.py would show."""
_FSDP_COPIES = {
    "all_gather_copy_in": "gathered",
    "split_with_sizes_copy": "gathered",
    "chunk_cat": "reducing",
}
"""What the buffers hold that FSDP copies into."""


@dataclass
class Storage:
    """Memory that was allocated at some time of the trace."""

    segment: int
    """Index of the segment that allocated it."""
    size: int
    """Bytes now; 0 when freed."""
    label: str = ""
    """What it holds, where an operation has shown it."""


@dataclass
class Work:
    """What a segment computes."""

    products: float = 0.0
    """Operations of matrix products."""
    attention: float = 0.0
    """Operations of attention on scores that the causal mask leaves."""
    traffic: float = 0.0
    """Bytes between the device and its memory for everything else."""


@dataclass
class Segment:
    """A stretch of a step, such as the forward pass of a block."""

    name: str
    block: int | None
    """Index of the block that it belongs to, if it belongs to one."""
    begin: int
    """Index of its first event."""
    work: Work = field(default_factory=Work)
    collectives: list[Collective] = field(default_factory=list)


class Ledger(TorchDispatchMode):
    """Sees each operation on this rank's tensors; `segments` and `events` are the account.

    Works on fake tensors. What DTensor computes about whole tensors while it works out how a result
    is cut is left out, since nothing of it happens on a device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[Storage] = []
        self.segments: list[Segment] = [Segment("state", None, 0)]
        self.events: list[tuple[int, int]] = []
        """Index of a storage, and the bytes it grew by; in order of time."""
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = (
            weakref.WeakKeyDictionary()
        )
        self._resizable: list[tuple[weakref.ref[torch.UntypedStorage], int]] = []
        self._ends: list[weakref.ref[torch.UntypedStorage]] = []

    def begin(self, name: str, block: int | None = None) -> None:
        """Start the next segment."""
        self._notice_resized()
        self.segments.append(Segment(name, block, len(self.events)))

    def name(self, tensors: Iterable[Tensor], label: str) -> None:
        """Say what some tensors hold."""
        for tensor in tensors:
            self.storages[self._known[local(tensor).untyped_storage()]].label = label

    def kernel(self, *tensors: Tensor) -> None:
        """Count one kernel that reads or writes each of these once."""
        self.segments[-1].work.traffic += sum(map(nbytes, tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchDispatchMode."""
        if any(issubclass(t, DTensor) for t in types):
            # DTensor turns it into operations on this rank's parts, which come here again.
            return NotImplemented
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]  # as it is on a device; a fake one would be a copy
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not _about_whole_tensors():
            self._notice_resized()
            outputs = fakes(result)
            fresh = [t for t in outputs if self._notice(t.untyped_storage())]
            self._record(Operation(func, args, kwargs, outputs, fresh))
        return result

    def _record(self, op: Operation) -> None:
        self._label(op)
        segment = self.segments[-1]
        if op.sends:
            exchange = op.collective()
            segment.collectives += [exchange] if len(exchange.ranks) > 1 else []
            return
        products, attention = op.product_flops(), op.attention_flops()
        segment.work.products += products
        segment.work.attention += attention
        if not products and not attention:
            segment.work.traffic += op.traffic()

    def _notice(self, storage: torch.UntypedStorage) -> bool:
        """Write down a storage; whether it is new."""
        if storage in self._known:
            return False
        index, size = len(self.storages), storage.nbytes()
        self.storages.append(Storage(len(self.segments) - 1, size))
        self._known[storage] = index
        self.events.append((index, size))
        self._ends.append(weakref.ref(storage, lambda _: self._resize(index, 0)))
        return True

    def _notice_resized(self) -> None:
        """FSDP frees and allocates gathered parameters by resizing, which is no operation."""
        for reference, index in self._resizable:
            storage = reference()
            if storage is not None and storage.nbytes() != self.storages[index].size:
                self._resize(index, storage.nbytes())
                self.storages[index].label = "gathered"

    def _resize(self, index: int, size: int) -> None:
        storage = self.storages[index]
        if size != storage.size:
            self.events.append((index, size - storage.size))
            storage.size = size

    def _label(self, op: Operation) -> None:
        if op.namespace == "fsdp" and op.name in _FSDP_COPIES:
            self._label_new(op.outputs or op.inputs[-1:], _FSDP_COPIES[op.name])
        elif op.name == "empty":
            storages = [t.untyped_storage() for t in op.fresh]
            self._resizable += [(weakref.ref(s), self._known[s]) for s in storages]
        elif op.name == "_to_copy" and any(
            self._label_of(t) in ("parameters", "gathered") for t in op.inputs
        ):
            self._label_new(op.fresh, "gathered")

    def _label_new(self, tensors: Iterable[Tensor], label: str) -> None:
        for tensor in tensors:
            storage = self.storages[self._known[tensor.untyped_storage()]]
            storage.label = storage.label or label

    def _label_of(self, tensor: Tensor) -> str:
        index = self._known.get(tensor.untyped_storage())
        return "" if index is None else self.storages[index].label


def _about_whole_tensors() -> bool:
    """Whether DTensor is at work on stand-ins for whole tensors. Nothing public tells."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_PROPAGATION):
            return True
        frame = frame.f_back
    return False
