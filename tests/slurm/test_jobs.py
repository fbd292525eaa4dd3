"""Runs as jobs of a real Slurm: they end as the same runs do without it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks.commands import Zygote
from tests.slurm.lab import ONE_RANK, SECONDS, TWO_NODES, Lab
from tests.support import ROOT, assert_same_run, command, record, tiny

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

Whole = Callable[..., Path]


def test_two_nodes_with_two_ranks_each(lab: Lab, whole: Whole) -> None:
    lab.train("run")
    run = lab.finish("run")
    (session,) = record(run)["sessions"]
    assert session["world_size"] == 4
    assert len(session["nodes"]) == 2
    assert session["host"] == session["nodes"][0]
    assert lab.status("run").startswith(f"finished 40/40 finished {lab.number('run')}")
    again = lab.command("train", *lab.ask("run"))
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    assert_same_run(run, whole(4), 40)


def test_a_finished_run_is_prolonged(lab: Lab, whole: Whole) -> None:
    first = lab.train("run", "schedule.total=20 steps", *ONE_RANK)
    run = lab.finish("run")
    longer = lab.command("train", f"resume={run}", "schedule.total=40 steps")
    assert longer.returncode == 0, longer.stderr
    assert lab.number("run") != first
    lab.finish("run")
    assert lab.starts("run") == [0, 20]
    assert_same_run(run, whole(1), 40)


def test_deepspeed(
    lab: Lab, deepspeed_zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> None:
    zero = ("engine=deepspeed", "engine.zero_stage=1", "schedule.total=12 steps")
    lab.train("run", *zero)
    here = tmp_path_factory.mktemp("whole") / "run"
    deepspeed_zygote.train(4, *tiny(here, f"data.cache={lab.cache}", *zero))
    run = lab.finish("run")
    assert record(run)["sessions"][0]["layout"] == {"zero_stage": 1}
    assert_same_run(run, here, 12)


def test_what_was_submitted_is_what_runs(lab: Lab, whole: Whole) -> None:
    copy = lab.place / "checkout"
    for part in ("llm_pretrain", "launch", "conf"):
        shutil.copytree(ROOT / part, copy / part)
    shutil.copytree(ROOT / "tests" / "conf", lab.place / "conf")
    ask = ("+cluster.slurm.sbatch.hold=true", f"--config-dir={lab.place / 'conf'}", *ONE_RANK)
    env = {**lab.environment(), "PYTHONPATH": str(copy)}
    done = command("train", *lab.ask("run", *ask), cwd=copy, **env)
    assert done.returncode == 0, done.stderr
    # Before the job begins, code and configuration become others.
    (copy / "llm_pretrain" / "train" / "loop.py").write_text("raise RuntimeError('edited')\n")
    tiny_yaml = lab.place / "conf" / "experiment" / "tiny.yaml"
    tiny_yaml.write_text(tiny_yaml.read_text().replace("3e-3", "1.0"))
    lab.slurm.run("scontrol", "release", lab.number("run"))
    assert_same_run(lab.finish("run"), whole(1), 40)


def test_preempted(lab: Lab, whole: Whole) -> None:
    long = ("schedule.total=100 steps", "eval.every=50 steps")
    job = lab.train("run", *long, *TWO_NODES, "+cluster.slurm.sbatch.partition=low")
    lab.reach("run", 5)
    other = lab.slurm.submit("-p", "high", "-N4", "--exclusive", "--wrap=true", cwd=lab.place)
    lab.slurm.wait_for(other, "COMPLETED")
    run = lab.finish("run")
    assert lab.slurm.job(job)["Restarts"] == "1"
    assert len(lab.starts("run")) == 2
    assert_same_run(run, whole(2, *long), 100)


def test_runs_that_cannot_work_end(lab: Lab) -> None:
    # What every rank begins with, before there is a Python to account for it.
    crash = ("cluster.slurm.tries=2", "cluster.slurm.bind=[/bin/false]")
    crashing = lab.train("crashing", *crash, *ONE_RANK)
    # Bad input is not tried again, and who waits for it is told.
    bad = lab.ask("bad", "data.sources.words.path=/nowhere/at/all.jsonl", *ONE_RANK)
    done = lab.command("train", "--wait", *bad)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == f"{lab.place / 'bad'}: failed"
    assert "/nowhere/at/all.jsonl" in lab.log("bad")
    assert lab.slurm.state(lab.number("bad")) == "FAILED"
    assert lab.slurm.job(lab.number("bad"))["Restarts"] == "0"
    lab.slurm.wait_for(crashing, "FAILED", seconds=SECONDS)
    assert "given up after 2 starts without progress" in lab.log("crashing")
    assert lab.slurm.job(crashing)["Restarts"] == "1"
    assert lab.status("crashing").startswith(f"failed 0/40 created {crashing} FAILED")
