"""The part of a tensor that this rank holds, and its place in the whole."""

import torch
from torch.distributed.tensor import DTensor


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
def assign(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy this rank's part of `whole`, which every rank has, into the parameter."""
    local, offsets = local_part(parameter)
    ends = (begin + length for begin, length in zip(offsets, local.shape, strict=True))
    local.copy_(whole[tuple(map(slice, offsets, ends))])
