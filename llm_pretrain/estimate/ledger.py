"""Writes down what a traced step allocates, frees, sends and computes, operation by operation."""

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_PROPAGATION = "torch/distributed/tensor/_sharding_prop.py"
_COLLECTIVES = {
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_to_all_single": "all-to-all",
    "shard_dim_alltoall": "all-to-all",
}
_FSDP_COPIES = {
    "all_gather_copy_in": "gathered",
    "split_with_sizes_copy": "gathered",
    "chunk_cat": "reducing",
}
"""What the buffers hold that FSDP copies into."""
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_WITHOUT_TRAFFIC = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@dataclass
class Storage:
    """Memory that was allocated at some time of the trace."""

    segment: int
    """Index of the segment that allocated it."""
    size: int
    """Bytes now; 0 when freed."""
    label: str = ""
    """What it holds, where an operation has shown it."""


@dataclass(frozen=True)
class Collective:
    """One exchange among ranks."""

    kind: str
    by: str
    """fsdp: parameters and gradients; dtensor: all else."""
    dtype: str
    bytes: int
    """Of the whole: the gathered or the not yet scattered tensor."""
    ranks: tuple[int, ...]
    """Its group, of which rank 0 is one."""


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


@dataclass(frozen=True)
class _Operation:
    """A call of an operator on this rank's tensors."""

    func: Any
    args: tuple[Any, ...]
    inputs: list[Tensor]
    outputs: list[Tensor]
    fresh: list[Tensor]
    """Outputs with memory of their own."""

    @property
    def name(self) -> str:
        """Without the namespace and the overload."""
        return str(self.func.overloadpacket.__name__)

    @property
    def namespace(self) -> str:
        """Of torch.ops."""
        return str(self.func.namespace)


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
        self.segments[-1].work.traffic += sum(map(_bytes, tensors))

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
            inputs, outputs = _fakes((args, kwargs)), _fakes(result)
            fresh = [t for t in outputs if self._notice(t.untyped_storage())]
            self._record(_Operation(func, args, inputs, outputs, fresh))
        return result

    def _record(self, op: _Operation) -> None:
        self._label(op)
        work = self.segments[-1].work
        if op.name in _COLLECTIVES:
            self._exchange(op)
        elif op.func.overloadpacket in flop_registry:
            work.products += flop_registry[op.func.overloadpacket](*op.args, out_val=op.outputs[0])
        elif op.name.startswith(_ATTENTION):
            work.attention += _attention_flops(op)
        elif op.name not in _WITHOUT_TRAFFIC and (op.fresh or op.name.endswith("_")):
            self.kernel(*op.inputs, *op.outputs)

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

    def _label(self, op: _Operation) -> None:
        if op.namespace == "fsdp" and op.name in _FSDP_COPIES:
            self._label_new(op.outputs or op.inputs[-1:], _FSDP_COPIES[op.name])
        elif op.name == "empty":
            storages = [t.untyped_storage() for t in op.fresh]
            self._resizable += [(weakref.ref(s), self._known[s]) for s in storages]
        elif op.name == "_to_copy" and self._label_of(op.inputs[0]) in ("parameters", "gathered"):
            self._label_new(op.fresh, "gathered")

    def _label_new(self, tensors: Iterable[Tensor], label: str) -> None:
        for tensor in tensors:
            storage = self.storages[self._known[tensor.untyped_storage()]]
            storage.label = storage.label or label

    def _label_of(self, tensor: Tensor) -> str:
        index = self._known.get(tensor.untyped_storage())
        return "" if index is None else self.storages[index].label

    def _exchange(self, op: _Operation) -> None:
        ranks = _ranks(op)
        if len(ranks) > 1:
            whole = max((*op.inputs, *op.outputs), key=_bytes)
            by = "fsdp" if op.namespace == "c10d" else "dtensor"
            dtype = str(whole.dtype).removeprefix("torch.")
            exchange = Collective(_COLLECTIVES[op.name], by, dtype, _bytes(whole), ranks)
            self.segments[-1].collectives.append(exchange)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be distributed."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _fakes(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, FakeTensor)]


def _bytes(tensor: Tensor) -> int:
    """What reading the tensor reads; an expanded one is read from where it lies."""
    part = local(tensor)
    return min(part.numel() * part.itemsize, part.untyped_storage().nbytes())


def _attention_flops(op: _Operation) -> float:
    """Of a causal kernel: two products forwards; backwards four, and the scores once more."""
    backward = op.name != _ATTENTION
    batch, heads, length, size = op.inputs[1 if backward else 0].shape  # queries: (B, H, T, D)
    pairs = length * (length + 1) / 2
    return (10 if backward else 4) * batch * heads * size * pairs


def _ranks(op: _Operation) -> tuple[int, ...]:
    """The group of a collective. Nothing public finds it by its name, or takes it out of a box."""
    names = [a.name for a in op.func._schema.arguments]
    given = dict(zip(names, op.args, strict=False))
    if "process_group" in given:
        group = dist.ProcessGroup.unbox(given["process_group"])
    else:
        resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
        group = resolve(given["group_name"])
    return tuple(dist.get_process_group_ranks(group))


def _about_whole_tensors() -> bool:
    """Whether DTensor is at work on stand-ins for whole tensors. Nothing public tells."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_PROPAGATION):
            return True
        frame = frame.f_back
    return False
