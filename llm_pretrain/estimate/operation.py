"""One call of an operator: what it reads, writes, computes and sends."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

# See fake.py.
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

# FlopCounterMode adds up by module; by stretch of a step, the formulas themselves are needed.
from torch.utils.flop_counter import flop_registry

_DISTRIBUTED = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem")
"""Namespaces of torch.ops whose operators send, but for those of `_SENDING_NOTHING`."""
_SENDING_NOTHING = ("_wrap_tensor_autograd", "mesh_get_process_group")
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
"""Operators that send the largest tensor that they take or give, as `Collective` has it."""
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_OVERWRITING = ("copy_", "_foreach_copy_", "fill_", "zero_")
"""Operators that do not read what they change."""
_PICKING = ("embedding", "nll_loss_forward")
"""Operators that read no more than they write, whatever the size of their inputs."""
_WITHOUT_TRAFFIC = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


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


@dataclass(frozen=True)
class Operation:
    """A call of an operator on this rank's tensors."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
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

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors that were given."""
        return fakes((self.args, self.kwargs))

    @property
    def sends(self) -> bool:
        """Whether ranks exchange something."""
        return self.namespace in _DISTRIBUTED and self.name not in _SENDING_NOTHING

    def collective(self) -> Collective:
        """What ranks exchange. Raises NotImplementedError for an operator that is not known."""
        if self.name not in _COLLECTIVES:
            raise NotImplementedError(
                f"estimate: {self.func} exchanges data and is not accounted for, so traffic and "
                f"time would come out too small; say in {__name__} what it sends"
            )
        whole = max((*self.inputs, *self.outputs), key=nbytes)
        by = "fsdp" if self.namespace == "c10d" else "dtensor"
        dtype = str(whole.dtype).removeprefix("torch.")
        return Collective(_COLLECTIVES[self.name], by, dtype, nbytes(whole), self._ranks())

    def product_flops(self) -> float:
        """Floating-point operations of a matrix product; 0 if it is none."""
        formula = flop_registry.get(self.func.overloadpacket)
        return 0.0 if formula is None else formula(*self.args, out_val=self.outputs[0])

    def attention_flops(self) -> float:
        """Operations on the scores that a causal kernel makes; 0 if it is no attention.

        Two products forwards; backwards four, and the scores once more.
        """
        if not self.name.startswith(_ATTENTION):
            return 0.0
        backward = self.name != _ATTENTION
        queries = self.inputs[1 if backward else 0]
        batch, heads, length, head_dim = queries.shape  # (B, H, T, D)
        pairs = length * (length + 1) / 2
        return (10 if backward else 4) * batch * heads * head_dim * pairs

    def traffic(self) -> int:
        """Bytes between the device and its memory, if each tensor is read or written once."""
        written = self._written()
        if self.name in _WITHOUT_TRAFFIC or not (self.fresh or written):
            return 0
        return sum(map(nbytes, (*self._read(), *self.fresh, *written)))

    def _written(self) -> list[Tensor]:
        """Inputs that the operator changes."""
        given = self._named()
        return fakes([given[name] for name in self._changed() if name in given])

    def _read(self) -> list[Tensor]:
        """Inputs whose values the operator needs."""
        if self.name in _PICKING:
            return self.fresh
        overwrites = self.name in _OVERWRITING
        unread = [name for name, told in self._changed().items() if told or overwrites]
        return fakes([value for name, value in self._named().items() if name not in unread])

    def _named(self) -> dict[str, Any]:
        """The arguments that were given, by name.

        An operator's schema is private; torch.library lets one state schemas, not read them.
        Without it there would have to be a table of operators here.
        """
        names = [a.name for a in self.func._schema.arguments]
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    def _changed(self) -> dict[str, bool]:
        """Arguments that the operator changes; whether it is only told where to write (out=)."""
        arguments = self.func._schema.arguments
        marked = [a for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        # A fused optimizer writes gradients only to undo a scale of the loss, and there is none.
        return {a.name: a.kwarg_only for a in marked if a.name != "grads"}

    def _ranks(self) -> tuple[int, ...]:
        """The group of a collective.

        Nothing public finds it by its name, or takes it out of the box in which operators get it.
        If these functions went, every estimate of several ranks would raise here.
        """
        given = self._named()
        if "process_group" in given:
            group = dist.ProcessGroup.unbox(given["process_group"])
        else:
            resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
            group = resolve(given["group_name"])
        return tuple(dist.get_process_group_ranks(group))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be distributed."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fakes(tree: Any) -> list[Tensor]:
    """The fake tensors in nested lists and dicts."""
    return [t for t in tree_leaves(tree) if isinstance(t, FakeTensor)]


def nbytes(tensor: Tensor) -> int:
    """Bytes that reading this rank's part reads; of an expanded one, where it lies."""
    part = local(tensor)
    return min(part.numel() * part.itemsize, part.untyped_storage().nbytes())
