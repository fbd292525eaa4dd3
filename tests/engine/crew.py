"""Ranks that stay, so that DeepSpeed is imported once, and run one function after the other."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llm_pretrain.engine.layout import Layout
from llm_pretrain.world import World

TIMEOUT = 120
"""Seconds after which the ranks are killed, so that a hang fails instead of lasting."""


class Crew:
    """`size` ranks on gloo, joined in one process group."""

    def __init__(self, size: int, place: Path) -> None:
        """They meet in a file in the folder `place`."""
        context = multiprocessing.get_context("forkserver")
        self._ranks = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, size, place / "store")
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(world, *arguments)` on every rank; what they returned, in order of rank."""
        for _, rank in self._ranks:
            rank.send((function, arguments))
        results = []
        for _, rank in self._ranks:
            if not wait([rank], TIMEOUT):
                self.close()
                raise TimeoutError(f"a rank did not answer within {TIMEOUT} s")
            result, failure = rank.recv()
            if failure is not None:
                # The others may wait for this one in a collective.
                self.close()
                raise RuntimeError(failure)
            results.append(result)
        return results

    def close(self) -> None:
        """End all ranks."""
        for process, rank in self._ranks:
            rank.close()
            process.join(1)
            process.kill()


def _serve(orders: Connection, rank: int, size: int, store: Path) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    world = World(rank, Layout(shard=size), torch.device("cpu"), dist.new_group())
    while True:
        try:
            function, arguments = orders.recv()
        except EOFError:
            return
        try:
            orders.send((function(world, *arguments), None))
        except BaseException:  # noqa: BLE001  (the test shows it)
            orders.send((None, f"rank {rank}: {traceback.format_exc()}"))
