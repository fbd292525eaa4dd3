"""A process that has imported everything and forks fresh ranks for each command it reads.

Starting Python with torch takes seconds; a kill at a random moment would mostly hit imports, and a
run on four ranks would take ten times as long to start as to train.

Reads lines of JSON {"commands": [[argument, ...], ...], "size": ranks, "log": prefix of their logs,
"hit": null or the fields of commands.Hit, "cwd": the folder they run in} and answers with the list
of pids, then, when all have ended, with the list of [exit status, seconds]. With "hit", that rank
gets a signal just before or just after the given call of a function; one that it stops is killed
when the others have ended.
Modules named on the command line are imported too.
"""

import gc
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_pretrain.cli import dispatch
from llm_pretrain.config.compose import compose
from llm_pretrain.errors import guarded
from llm_pretrain.train import hardware
from tests.support import measure_once

_IMPORTS = (
    *("datasets", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"),
    *("llm_pretrain.train.command", "llm_pretrain.train.session", "torchao.float8"),
    *("torch._inductor.compile_fx", "torch._inductor.codegen.triton"),
)
"""What a training process imports, some of it late, the last three only for FP8 or a compiler."""

_PORTS = range(20000, 30000)
"""Below those that the kernel gives to connections, so that only another test could take one."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun would set; none for a process on its own."""
    if size == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**{name: str(number) for name, number in numbers.items()}, **address}


def arm(function: str, call: int, when: str, number: int) -> None:
    """Make this process send itself a signal around the n-th call of 'module:function'."""
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def armed(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and when == "before":
            os.kill(os.getpid(), number)
        result = original(*arguments, **options)
        if calls[0] == call and when == "after":
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, armed)


def child(commands: Sequence[list[str]], log: Path, cwd: str) -> None:
    """Run the commands one after the other in this forked process; never returns."""
    os.chdir(cwd)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 0
    try:
        for arguments in commands:
            code = code or guarded(dispatch, arguments)
    except BaseException:  # noqa: BLE001  (as Python itself at the end of a program)
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(request: dict[str, Any]) -> list[int]:
    """Fork the ranks of one request; their pids in order of rank."""
    size, hit, port = request["size"], request["hit"], free_port()
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            random.seed()
            os.environ.update(place(rank, size, port))
            if hit and hit["rank"] == rank:
                arm(hit["function"], hit["call"], hit["when"], hit["signal"])
            child(request["commands"], Path(f"{request['log']}.{rank}"), request["cwd"])
        pids.append(pid)
    return pids


def wait(pids: list[int], victim: int | None) -> list[tuple[int, float]]:
    """Exit status, negative for a signal, and seconds lived, of each child."""
    began, ended = time.monotonic(), {}
    while len(ended) < len(pids):
        if set(pids) - set(ended) == {victim}:
            os.kill(victim, signal.SIGKILL)
        pid, status = os.waitpid(-1, 0)
        ended[pid] = (os.waitstatus_to_exitcode(status), time.monotonic() - began)
    return [ended[pid] for pid in pids]


def main() -> None:
    """Serve until standard input ends."""
    for module in (*_IMPORTS, *sys.argv[1:]):
        importlib.import_module(module)
    # Four ranks that measure two cores would take longer than their training.
    measure_once()
    for dtype in (torch.float32, torch.bfloat16):
        hardware.peak(torch.device("cpu"), dtype)
    # Hydra's parsers are slow when they read the first of anything.
    compose([])
    # Ranks begin with a search for cycles, which would copy every page that holds an object.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        pids = start(request)
        print(json.dumps(pids), flush=True)
        hit = request["hit"]
        victim = pids[hit["rank"]] if hit and hit["signal"] == signal.SIGSTOP else None
        print(json.dumps(wait(pids, victim)), flush=True)


if __name__ == "__main__":
    main()
