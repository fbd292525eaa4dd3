"""Which process of a run this one is: torchrun says so, or Slurm, or nobody."""

import os
import re
from collections.abc import MutableMapping

_PORTS = range(20000, 30000)
"""Below those that the kernel gives to connections, so that only another job could take one."""


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give a task of a Slurm step the variables that torchrun would give it.

    A process that torchrun started has them, and keeps them even inside of a step. One that neither
    started stays alone, also in the batch script of a job, which is no rank.
    """
    if "RANK" in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=_here(environment),
        MASTER_ADDR=first_host(environment["SLURM_STEP_NODELIST"]),
        # Steps and jobs that share a node must not meet each other.
        MASTER_PORT=str(_PORTS[(job + 101 * step) % len(_PORTS)]),
    )


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes, whose order ranks follow.

    Done here and not by `scontrol show hostnames`, which containers lack.

    >>> first_host("nid[001234-001240,002],login1")
    'nid001234'
    """
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _here(environment: MutableMapping[str, str]) -> str:
    """Tasks of the step on this node, from a list such as '4(x2),3'."""
    counts: list[str] = []
    for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match, part
        counts += [match[1]] * int(match[2] or 1)
    return counts[int(environment["SLURM_NODEID"])]
