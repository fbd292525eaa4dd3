"""Functions on several ranks, forked from a process that has only imported what they need."""

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llm_pretrain.engine.layout import Layout
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


def run(place: Path, layout: Layout, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(world, *arguments)` on every rank of `layout`; what they returned.

    They meet in a file under `place`. Raises RanksError.
    """
    results = ends(place, layout, function, *arguments)
    broken = [f"rank {rank}: {end}" for rank, end in enumerate(results) if isinstance(end, str)]
    if broken:
        raise RanksError("\n".join(broken))
    return [end[0] for end in results]


def ends(
    place: Path, layout: Layout, function: Callable[..., Any], *arguments: Any
) -> list[tuple[Any] | str]:
    """As `run`, but what happened to each rank: (its result,), or what went wrong."""
    meeting = place / f"meeting-{len(list(place.glob('meeting-*')))}"
    meeting.mkdir()
    pairs = []
    for rank in range(layout.size):
        reader, writer = _SERVER.Pipe(duplex=False)
        process = _SERVER.Process(
            target=_rank, args=(writer, rank, layout, meeting / "store", (function, arguments))
        )
        process.start()
        writer.close()
        pairs.append((process, reader))
    results = [_end(reader) for _, reader in pairs]
    for process, _ in pairs:
        process.join(1)
        process.kill()
    return results


def _end(reader: Connection) -> tuple[Any] | str:
    if not wait([reader], TIMEOUT):
        return "did not end"
    try:
        return reader.recv()  # type: ignore[no-any-return]
    except EOFError:
        return "died"


def _rank(
    writer: Connection, rank: int, layout: Layout, store: Path, call: tuple[Any, tuple[Any, ...]]
) -> None:
    function, arguments = call
    torch.set_num_threads(1)
    try:
        if layout.size == 1:
            world = World(rank, layout, torch.device("cpu"))
        else:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=layout.size,
                timeout=timedelta(seconds=TIMEOUT / 2),
            )
            world = World(rank, layout, torch.device("cpu"), dist.new_group(backend="gloo"))
        writer.send((function(world, *arguments),))
    except BaseException:  # noqa: BLE001  (the parent shows it)
        writer.send(traceback.format_exc())
    sys.stdout.flush()
