"""Functions on several ranks, forked from a process that has only imported what they need."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llm_pretrain.config.layout import Layout
from llm_pretrain.world import World

TIMEOUT = 120
"""Seconds after which the ranks are killed, so that a hang fails one test only."""
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("pytest", "numpy.random", "torch.distributed.checkpoint.format_utils"),
        *("llm_pretrain.checkpoint.saver", "llm_pretrain.engine.fsdp"),
        "torch._dynamo",  # which the first optimizer of a process imports
    ]
)


class RanksError(Exception):
    """A rank raised, died or did not end; the message says which and why."""


class Crew:
    """The ranks of a layout on gloo, joined in one process group, for one call after the other."""

    def __init__(self, layout: Layout, place: Path) -> None:
        """They meet in a file under `place`."""
        meeting = place / f"meeting-{len(list(place.glob('meeting-*')))}"
        meeting.mkdir()
        self._ranks: list[tuple[BaseProcess, Connection]] = []
        for rank in range(layout.size):
            ours, theirs = _SERVER.Pipe()
            arguments = (theirs, rank, layout, meeting / "store")
            process = _SERVER.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(world, *arguments)` on every rank; what they returned. Raises RanksError."""
        results = self.ends(function, *arguments)
        broken = [f"rank {rank}: {end}" for rank, end in enumerate(results) if isinstance(end, str)]
        if broken:
            # The others may wait for this one in a collective.
            self.close()
            raise RanksError("\n".join(broken))
        return [end[0] for end in results]

    def ends(self, function: Callable[..., Any], *arguments: Any) -> list[tuple[Any] | str]:
        """As `run`, but what happened to each rank: (its result,), or what went wrong."""
        for _, rank in self._ranks:
            rank.send((function, arguments))
        return [_end(rank) for _, rank in self._ranks]

    def close(self) -> None:
        """End all ranks."""
        for process, rank in self._ranks:
            rank.close()
            process.join(1)
            process.kill()


def run(place: Path, layout: Layout, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(world, *arguments)` once on the ranks of `layout`, as Crew.run does."""
    crew = Crew(layout, place)
    try:
        return crew.run(function, *arguments)
    finally:
        crew.close()


def ends(
    place: Path, layout: Layout, function: Callable[..., Any], *arguments: Any
) -> list[tuple[Any] | str]:
    """`function(world, *arguments)` once on the ranks of `layout`, as Crew.ends does."""
    crew = Crew(layout, place)
    try:
        return crew.ends(function, *arguments)
    finally:
        crew.close()


def _end(rank: Connection) -> tuple[Any] | str:
    if not wait([rank], TIMEOUT):
        return "did not end"
    try:
        return rank.recv()  # type: ignore[no-any-return]
    except (EOFError, ConnectionResetError):
        return "died"


def _serve(orders: Connection, rank: int, layout: Layout, store: Path) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    world = World(rank, layout, torch.device("cpu"))
    if layout.size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=layout.size,
            timeout=timedelta(seconds=TIMEOUT / 2),
        )
        world = World(rank, layout, torch.device("cpu"), dist.new_group(backend="gloo"))
    while True:
        try:
            function, arguments = orders.recv()
        except EOFError:
            return
        try:
            orders.send((function(world, *arguments),))
        except BaseException:  # noqa: BLE001  (the parent shows it)
            orders.send(traceback.format_exc())
