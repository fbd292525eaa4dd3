"""The part of a tensor that this rank holds, and its place in the whole."""

import torch
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor; the same memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole_value(tensor: torch.Tensor) -> torch.Tensor:
    """The whole value of a small tensor that may be distributed; every rank calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(value: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """What this rank holds of a tensor, and the index in the whole at which it begins."""
    if not isinstance(value, DTensor):
        return value, (0,) * value.ndim
    if value.device_mesh.get_coordinate() is None:
        return torch.empty(0), (0,)
    # By this protocol torch's own checkpoints ask a tensor for its place. The public alternative,
    # placements and mesh, leaves to the caller what FSDP over tensor parallelism means.
    (chunk,) = value.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return value.to_local(), tuple(chunk.offsets)


@torch.no_grad()
def assign(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copy this rank's part of the whole `value`, which every rank has, into the parameter."""
    part, offsets = local_part(parameter)
    ends = (begin + length for begin, length in zip(offsets, part.shape, strict=True))
    part.copy_(value[tuple(map(slice, offsets, ends))])
