"""Preflights on ranks that take themselves for several nodes, forked from a warm process.

Reads lines of JSON with the fields of Request and answers with the exit status of each rank.
"""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launch.preflight import host, rank
from tests.ranks.zygote import arm, child, free_port, place, wait
from tests.support import ROOT


@dataclass(frozen=True)
class Request:
    """One preflight: a rank for each entry of `nodes`, the name of its node."""

    arguments: list[str]
    nodes: list[str]
    log: str
    """Prefix of the ranks' outputs."""
    changes: dict[str, str] = field(default_factory=dict)
    """By rank, the function below that makes it another than the others."""
    environment: dict[str, str] = field(default_factory=dict)
    by_slurm: bool = False
    """With srun's variables and not torchrun's."""


@dataclass(frozen=True)
class Done:
    """How the ranks ended."""

    codes: dict[int, int]
    log: str

    def output(self, number: int = 0) -> str:
        """Standard output and errors of a rank."""
        return Path(f"{self.log}.{number}").read_text()

    def __str__(self) -> str:
        """For the message of a failed assertion."""
        return f"{self.codes}\n" + "\n".join(self.output(number) for number in self.codes)


class Nodes:
    """Runs preflights, one after the other."""

    def __init__(self, process: "subprocess.Popen[str]", logs: Path) -> None:
        self._process, self._logs, self._count = process, logs, 0

    def run(self, nodes: str, *arguments: str, **options: Any) -> Done:
        """A preflight on ranks whose nodes are named in `nodes`; see Request for the options."""
        assert self._process.stdin and self._process.stdout
        self._count += 1
        log = str(self._logs / str(self._count))
        request = Request(["preflight", *arguments], nodes.split(), log, **options)
        self._process.stdin.write(json.dumps(dataclasses.asdict(request)) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return Done({int(number): code for number, code in codes.items()}, log)


@contextmanager
def start(logs: Path) -> Iterator[Nodes]:
    """A process that forks them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launch.nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Nodes(process, logs)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=60)


def slow() -> None:
    """Each product takes as long as twenty."""
    multiply = rank.multiply
    rank.multiply = lambda a, b, count: multiply(a, b, 20 * count)


def wrong_sums() -> None:
    """Arithmetic that errs: what it adds to is not what it should be."""
    full = torch.full
    torch.full = lambda *size, **options: full(*size, **options) + 1


def other_torch() -> None:
    """Another version of torch, as on a node with an old image."""
    versions = rank._versions
    rank._versions = lambda: {**versions(), "torch": "1.0"}


def full_disk() -> None:
    """No file larger than a megabyte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))


def hang_in_matmul() -> None:
    """The process stops, and its connections stay."""
    arm("launch.preflight.rank:matmul", 1, "before", signal.SIGSTOP)


def hang_in_all_reduce() -> None:
    """The same when the others already wait for it."""
    arm("launch.preflight.between:_timed", 1, "before", signal.SIGSTOP)


def die_in_all_reduce() -> None:
    """The process ends, and its connections close."""
    arm("launch.preflight.between:_timed", 1, "before", signal.SIGKILL)


def stuck_device() -> None:
    """A product that never ends, in a process that goes on."""
    rank.multiply = lambda a, b, count: time.sleep(1000)


def never_starts() -> None:
    """No such process."""


def _variables(request: Request, number: int, port: int) -> dict[str, str]:
    node, size = request.nodes[number], len(request.nodes)
    local = {
        "LOCAL_RANK": str(request.nodes[:number].count(node)),
        "LOCAL_WORLD_SIZE": str(request.nodes.count(node)),
    }
    if not request.by_slurm:
        return {**place(number, size, port), **local, "SLURMD_NODENAME": node}
    names = list(dict.fromkeys(request.nodes))
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_TASKS_PER_NODE": ",".join(str(request.nodes.count(name)) for name in names),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": local["LOCAL_RANK"],
        "SLURM_NODEID": str(names.index(node)),
        "SLURMD_NODENAME": node,
    }


def _start(request: Request) -> dict[int, int]:
    """The pid of each rank that starts."""
    port, pids = free_port(), {}
    for number in range(len(request.nodes)):
        change = request.changes.get(str(number))
        if change == never_starts.__name__:
            continue
        pid = os.fork()
        if pid == 0:
            random.seed()
            os.environ.update(_variables(request, number, port))
            os.environ.update(request.environment)
            if change:
                globals()[change]()
            child([request.arguments], Path(f"{request.log}.{number}"), str(ROOT))
        pids[number] = pid
    return pids


def main() -> None:
    """Serve until the input ends."""
    # Seconds that are for real devices.
    rank.MATMUL_SECONDS, host.WRITE_BYTES = 0.2, 8 * host.MIB
    for line in sys.stdin:
        request = Request(**json.loads(line))
        pids = _start(request)
        hung = [int(number) for number, name in request.changes.items() if name.startswith("hang")]
        victim = pids[hung[0]] if hung else None
        ends = wait(list(pids.values()), victim)
        codes = {number: code for number, (code, _) in zip(pids, ends, strict=True)}
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
