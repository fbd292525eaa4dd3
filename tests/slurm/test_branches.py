"""Branches as jobs: each exactly once, whoever asks for them and however often."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.lab import ONE_RANK, SECONDS, Lab
from tests.support import record

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STARTS = (60, 120, 180, 240)
PLAN = (
    f"plan=[{{at: [{', '.join(f'{step} steps' for step in STARTS)}], cooldown: {{length: 20%}}}}]"
)


def watch(lab: Lab, run: Path) -> "subprocess.Popen[str]":
    """A watcher of a run, in a process of its own."""
    return lab.start("branch", "watch", str(run), "--every", "0.5")


def test_watchers_are_killed_and_each_branch_starts_once(lab: Lab) -> None:
    draw = random.Random(11)
    lab.train("trunk", "schedule.total=300 steps", "eval.every=0 steps", PLAN, *ONE_RANK)
    run = lab.place / "trunk"
    for _ in range(6):
        watcher = watch(lab, run)
        time.sleep(draw.uniform(0.5, 4))
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
    pair = [watch(lab, run) for _ in range(2)]
    said = [watcher.communicate(timeout=SECONDS)[0] for watcher in pair]
    assert [watcher.returncode for watcher in pair] == [0, 0], said
    branches = list(lab.place.glob("trunk.*"))
    assert sorted(record(path)["parent"]["step"] for path in branches) == list(STARTS)
    for path in branches:
        assert record(path)["state"] == "finished"
        assert len(record(path)["sessions"]) == 1
    assert lab.submitted() == 1 + len(STARTS)


def test_applied_from_two_login_nodes_at_once(lab: Lab) -> None:
    lab.train("trunk", "schedule.total=60 steps", *ONE_RANK)
    run = lab.finish("trunk")
    ask = ["branch", "apply", f"parent={run}", "at=[20 steps, 40 steps, 60 steps]"]
    started = [lab.start(*ask) for _ in range(3)]
    said = [process.communicate(timeout=SECONDS)[0] for process in started]
    assert not any(process.returncode for process in started), said
    branches = sorted(path.name for path in lab.place.glob("trunk.*"))
    assert len(branches) == 3
    for name in branches:
        lab.finish(name)
        assert len(record(lab.place / name)["sessions"]) == 1
    numbers = {lab.number(name) for name in branches}
    assert len(numbers) == 3
    assert lab.submitted() == 1 + 3
