"""The processes of a run: ranks, devices and the few things they must agree on."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from launch.ranks import adopt
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.layout import Layout
from llm_pretrain.errors import LostRankError, UserError, disk_reason

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""For the others while rank 0 prepares data, before `World.limit`. A rank that dies closes its
connections, which ends the wait of the others at once, so only a rank that hangs is waited for."""
_SIGNS_OF_SILENCE = ("timed out", "timeout")
_SIGNS_OF_LOSS = (
    *("connection closed", "connection reset", "connection refused", "broken pipe"),
    *("remote process exited", "failed to recv", *_SIGNS_OF_SILENCE),
)


@dataclass(frozen=True)
class World:
    """This process among all, and what its layout gives it to do."""

    rank: int
    layout: Layout
    device: torch.device
    io_group: Any = None
    """Gloo group for checkpoints, whose collectives run beside those of training. None for a
    process that trains the plain module alone, without any group."""

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.layout.size

    @property
    def data_rank(self) -> int:
        """Which part of each batch is this rank's."""
        return self.layout.data_rank(self.rank)

    @property
    def data_size(self) -> int:
        """Number of parts that each batch is cut into."""
        return self.layout.data_size

    @property
    def main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    @property
    def waits_for_devices(self) -> bool:
        """Whether a collective that hangs leaves the main thread waiting for its device."""
        return self.size > 1 and self.device.type == "cuda"

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
                box[1] = UserError(disk_reason(error))
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
        """The tensor summed over the parts of the batch, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
            # Ranks that share a part of the batch have each put in their mean over it, or the
            # same value.
            tensor /= self.layout.part_size
        return tensor

    def limit(self, training: float, saving: float) -> None:
        """Wait at most so many seconds for each other from now on, in every group there is.

        `saving` is for the I/O group, on which one rank may be slower than another to write.
        """
        if self.io_group is None:
            return
        # Private, both: no group that torch's meshes or DeepSpeed make for themselves takes a
        # timeout in a public way, and theirs is of 10 or 30 minutes.
        for group in list(dist.distributed_c10d._world.pg_map):
            seconds = saving if group is self.io_group else training
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)

    def watched(self) -> AbstractContextManager[None]:
        """Raises LostRankError for what torch raises when another rank is gone or too slow."""
        return _watched(self.rank)


class Vote:
    """Whether any rank has raised its flag, asked at one step and answered at the next.

    So no step waits for the answer, and no device for the host.
    """

    def __init__(self, world: World) -> None:
        self._size = world.size
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def cast(self, flag: bool) -> bool:
        """Give this rank's flag; whether one was up at the call before, the same on all ranks.

        A process alone has its answer at once.
        """
        if self._size == 1:
            return flag
        answer = self._answer()
        # On the CPU, and thus by gloo, whatever the devices are.
        ballot = torch.tensor(float(flag))
        self._asked = (dist.all_reduce(ballot, async_op=True), ballot)
        return answer

    def _answer(self) -> bool:
        if self._asked is None:
            return False
        work, ballot = self._asked
        work.wait()
        return bool(ballot.item())


@contextmanager
def join(engine: EngineConfig) -> Iterator[World]:
    """Enter the world that torchrun's variables describe, or a world of one.

    Raises UserError when the ranks do not make the layout that `engine` asks for, or when they
    have no device each.
    """
    adopt()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    layout = Layout.of(engine, size)
    device = choose_device(engine.device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1 and engine.name == "fsdp" and engine.offload == "none":
        yield World(rank, layout, device)
        return
    with _watched(rank):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=engine.timeout),
            # Alone, there is nobody to meet and no address to meet at.
            store=HashStore() if size == 1 else None,
            rank=rank,
            world_size=size,
        )
        group = dist.new_group(timeout=_PATIENCE, backend="gloo", group_desc="io")
        world = World(rank, layout, device, group)
    try:
        with _watched(rank):
            _check_devices(world)
            yield world
    except UserError:
        dist.destroy_process_group()
        raise
    # After any other error it could mean to wait for a rank that is gone, or in a collective.
    dist.destroy_process_group()


@contextmanager
def _watched(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo's failures have no type of their own, and NCCL's one type for everything.
        if not any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS):
            raise
        reason = str(error).strip().splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        lost = LostRankError(
            f"rank {rank}: another rank is lost or did not answer within engine.timeout "
            f"({reason}); its own output says why. The last complete checkpoint is intact: "
            "start the same command again"
        )
        lost.silent = any(sign in str(error).lower() for sign in _SIGNS_OF_SILENCE)
        raise lost from error


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of a process, for engine.device=`name`. Raises UserError when there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device: cuda asked for, but torch sees no CUDA device; use cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # With one visible device per task, as Slurm may bind them, the local rank is not an index.
    count = torch.cuda.device_count()
    index = local_rank if count > 1 else 0
    if index >= count:
        raise UserError(
            f"local rank {local_rank}: this node has {count} GPUs; start at most {count} processes"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _check_devices(world: World) -> None:
    """Raise UserError when two ranks share a GPU: NCCL would hang or fail in its own words."""
    if world.device.type != "cuda":
        return
    uuid = str(torch.cuda.get_device_properties(world.device).uuid)
    seen: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(world.gather((socket.gethostname(), uuid))):
        other = seen.setdefault(place, rank)
        if other != rank:
            raise UserError(
                f"ranks {other} and {rank} have the same GPU {uuid} on {place[0]}; start one "
                "process for each GPU, or bind one GPU to each task"
            )
