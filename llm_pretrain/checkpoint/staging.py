"""Copies of the training state in host memory, cut into the pieces that this rank writes."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from llm_pretrain.parts import local_part

PIECE_BYTES = 32 * 2**20
"""Largest piece, unless a single row is larger. Who reads a row reads its piece, so small pieces
let any number of ranks read what one rank wrote; large ones keep the files' overhead small."""
_SLAB_BYTES = 8 * PIECE_BYTES
"""Memory is taken in slabs of a power of two: torch rounds each pinned allocation up to one."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor, or all of it.

    DTensors are not kept: on the host, one whose mesh is of GPUs cannot be made in pinned memory by
    torch's public functions. Plain memory and a position say all that a checkpoint needs.
    """

    data: torch.Tensor
    """On the host; its storage holds nothing else."""
    offsets: tuple[int, ...]
    """Where it begins in the whole tensor."""
    shape: torch.Size
    """Of the whole tensor."""


class Stager:
    """Copies one state after the other into the same host memory, which the first copy allocates.

    Of several equal copies of a tensor each of the ranks that hold one takes a share of the pieces.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._pageable, self._pinned = _Memory(pinned=False), _Memory(pinned=True)

    @torch.no_grad()
    def copy(self, live: dict[str, Any]) -> dict[str, Any]:
        """The same nested dict with a tuple of pieces for each tensor; overwrites the copy before.

        Leaves are as in `engine.base.State`. A function is called once and what it returned is
        dropped before the next call; all ranks get the same from it, or parts of one DTensor.
        """
        self._pageable.rewind()
        self._pinned.rewind()
        devices: set[torch.device] = set()
        copied = self._tree(live, "", devices)
        for device in devices:
            torch.cuda.synchronize(device)
        return copied

    def _tree(
        self, live: dict[str, Any], prefix: str, devices: set[torch.device]
    ) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, value in live.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                copied[key] = self._tree(value, f"{name}.", devices)
            else:
                copied[key] = tuple(self._pieces(name, value, devices))
        return copied

    def _pieces(self, name: str, leaf: Any, devices: set[torch.device]) -> Iterator[Piece]:
        made = not isinstance(leaf, torch.Tensor)
        value: torch.Tensor = leaf() if made else leaf
        local, offsets = local_part(value)
        copies, mine = (self._size, self._rank) if made else (1, 0)
        if isinstance(value, DTensor):
            copies, mine = _replicas(value)
        for part, begin in _rows(local, offsets):
            # By name, since that is what all holders of a copy know without asking each other.
            if zlib.crc32(f"{name}{begin}".encode()) % copies == mine:
                memory = self._pinned if part.is_cuda else self._pageable
                data = memory.take(part).copy_(part, non_blocking=part.is_cuda)
                yield Piece(data, begin, value.shape)
                if part.is_cuda:
                    devices.add(part.device)


def _replicas(value: DTensor) -> tuple[int, int]:
    """How many ranks hold a copy of the same part, and which of them this one is."""
    copies, mine, mesh = 1, 0, value.device_mesh
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    for size, at, placement in zip(mesh.shape, coordinate, value.placements, strict=True):
        if placement.is_replicate():
            copies, mine = copies * size, mine * size + at
    return copies, mine


def _rows(
    local: torch.Tensor, offsets: tuple[int, ...]
) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """A tensor in pieces along its first dimension, each with its offsets; none when empty."""
    if local.numel() == 0:
        return
    if local.ndim == 0:
        yield local, ()
        return
    rows = max(1, PIECE_BYTES // local[0].nbytes)
    for begin in range(0, len(local), rows):
        yield local[begin : begin + rows], (offsets[0] + begin, *offsets[1:])


class _Memory:
    """Host memory handed out from front to back; `rewind` makes all of it free again."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._slabs: list[torch.Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """Start over at the front."""
        self._slab = self._used = 0

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """An uninitialized contiguous tensor of the same shape and type."""
        while True:
            if self._slab == len(self._slabs):
                size = max(_SLAB_BYTES, like.nbytes)
                slab = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
                self._slabs.append(slab)
            slab = self._slabs[self._slab]
            begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
            if begin + like.nbytes <= len(slab):
                break
            self._slab, self._used = self._slab + 1, 0
        self._used = begin + like.nbytes
        # Unlike a view, it has a storage of its own size, of which torch.save writes all.
        flat = torch.frombuffer(slab.numpy(), dtype=like.dtype, count=like.numel(), offset=begin)
        return flat.view(like.shape)
