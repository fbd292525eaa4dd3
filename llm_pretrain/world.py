"""The processes of a run: ranks, devices and the few things they must agree on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llm_pretrain.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all; a single process has no process group."""

    rank: int
    size: int
    device: torch.device
    io_group: Any = None
    """Gloo group for checkpoints, whose collectives run beside those of training."""

    @property
    def main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and give its result, or its UserError, to every rank."""
        if self.size == 1:
            return action()
        box: list[Any] = [None, None]
        if self.main:
            try:
                box[0] = action()
            except UserError as error:
                box[1] = error
            except OSError as error:
                box[1] = UserError(f"{error.filename}: {error.strerror}")
        dist.broadcast_object_list(box, src=0, group=self.io_group)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank; also a barrier. Uses the I/O group."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.io_group)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the same answer everywhere."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())


@contextmanager
def join(device: str) -> Iterator[World]:
    """Enter the world that torchrun's variables describe, or a world of one.

    Raises UserError when the device is not there.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(rank, size, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device: cuda asked for, but torch sees no CUDA device; use cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # With one visible device per task, as Slurm may bind them, the local rank is not an index.
    index = local_rank if torch.cuda.device_count() > 1 else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
