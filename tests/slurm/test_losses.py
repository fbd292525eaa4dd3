"""Jobs that lose a node, a rank or their time: each run ends as if nobody had touched it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.lab import ONE_RANK, TWO_NODES, Lab
from tests.support import assert_same_run, record

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

HANG = """#!/bin/bash
"$@" &
if [ "$SLURM_PROCID" = {rank} ] && [ -z "${{SLURM_RESTART_COUNT:-}}" ]; then
    until [ "$(wc -l <{metrics})" -gt 20 ]; do sleep 0.1; done 2>/dev/null
    kill -STOP $!
    {then}
fi
wait $!
"""
"""In front of each rank: one stops in mid-run, in the job's first turn."""
LONG = ("schedule.total=100 steps", "eval.every=50 steps")
Whole = Callable[..., Path]


def hang(lab: Lab, rank: int, then: str = "") -> str:
    """Override for ranks of which one stops after 20 steps."""
    wrapper = lab.place / "hang.sh"
    metrics = lab.place / "run" / "metrics.jsonl"
    wrapper.write_text(HANG.format(rank=rank, metrics=metrics, then=then))
    wrapper.chmod(0o755)
    return f"cluster.slurm.bind=[{wrapper}]"


def test_the_time_limit_is_near(lab: Lab, whole: Whole) -> None:
    # No time for a signal, as if it were lost: the run knows itself when the job ends. After a step
    # of 15 s another one could be the last within a minute.
    slow = hang(lab, rank=0, then="sleep 15; kill -CONT $!")
    limit = ("cluster.slurm.sbatch.time='00:01:00'", "cluster.slurm.signal_seconds=1")
    long = ("schedule.total=400 steps", "eval.every=0 steps", "checkpoint.every=200 steps")
    job = lab.train("run", *long, *limit, *ONE_RANK, slow)
    run = lab.finish("run")
    assert "stopped by the job's time limit" in lab.log("run")
    assert int(lab.slurm.job(job)["Restarts"]) == len(lab.starts("run")) - 1
    # It saved where it stopped, and did nothing twice.
    assert all(step % 200 for step in lab.starts("run")[1:])
    assert_same_run(run, whole(1, *long), 400)


def test_a_node_fails(lab: Lab, whole: Whole) -> None:
    lab.train("run", *LONG, *TWO_NODES)
    lab.reach("run", 25)
    victim = record(lab.place / "run")["sessions"][0]["host"]
    lab.slurm.power_off(victim)
    run = lab.finish("run")
    lab.slurm.boot(victim)
    first, second = lab.starts("run")
    assert first == 0
    # At most one interval of work is done again.
    assert second >= 10
    assert record(run)["sessions"][1]["host"] != victim
    assert (run / "failed-nodes").read_text() == f"{victim}\n"
    assert_same_run(run, whole(2, *LONG), 100)


def test_a_rank_that_hangs_is_named_and_its_node_avoided(lab: Lab, whole: Whole) -> None:
    # So long that it cannot be done before the rank is stopped.
    long = ("schedule.total=400 steps", "eval.every=200 steps")
    patience = ("engine.timeout=10", "checkpoint.timeout=10")
    lab.train("run", *long, *TWO_NODES, *patience, hang(lab, rank=1))
    run = lab.finish("run")
    first, second = record(run)["sessions"]
    node = first["nodes"][1]
    assert f"No answer from rank 1 on {node}" in lab.log("run")
    assert (run / "failed-nodes").read_text() == f"{node}\n"
    assert node not in second["nodes"]
    # The other had the time to write down what it waited in. It may have, too: Slurm wakes what it
    # ends.
    dumps = {path.name for path in (run / "flight-recorder" / "session-1").iterdir()}
    assert "rank-0000.json" in dumps
    assert_same_run(run, whole(2, *long), 400)
