"""Runs as jobs of a real Slurm: however one ends, the run ends as if nobody had touched it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks.commands import Zygote
from tests.slurm.lab import SECONDS, Lab
from tests.support import ROOT, assert_same_run, command, metrics, record, tiny

pytestmark = pytest.mark.slurm

LONG = 200
HANG = """#!/bin/bash
"$@" &
if [ "$SLURM_PROCID" = 3 ] && [ -z "${{SLURM_RESTART_COUNT:-}}" ]; then
    until [ "$(wc -l <{metrics})" -gt 30 ]; do sleep 0.1; done 2>/dev/null
    kill -STOP $!
fi
wait $!
"""
"""In front of each rank: one stops in mid-run, in the job's first turn."""
Whole = Callable[..., Path]


@pytest.fixture
def whole(zygote: Zygote, cache: Path, tmp_path: Path) -> Whole:
    """The same run on four ranks, which nobody disturbs: whole(*overrides)."""

    def train(*overrides: str) -> Path:
        place = tmp_path / "whole"
        zygote.train(4, *tiny(place, f"data.cache={cache}", *overrides))
        return place

    return train


def test_two_nodes_with_two_ranks_each(lab: Lab, whole: Whole) -> None:
    lab.train("run")
    run = lab.finish("run")
    assert_same_run(run, whole(), 40)
    (session,) = record(run)["sessions"]
    assert session["world_size"] == 4
    assert session["host"] in ("n1", "n2", "n3", "n4")
    said = lab.command("status", str(lab.place)).stdout
    assert "finished" in said
    assert "COMPLETED" in said
    again = lab.command("train", *lab.ask("run"))
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)


def test_a_script_by_hand(lab: Lab, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_CORPUS", str(lab.corpus))
    monkeypatch.setenv("VENV", sys.prefix)
    options = ("--nodes=2", "--ntasks-per-node=2", "--time=10", "--cpus-per-task=1")
    arguments = tiny(lab.place / "run", f"data.cache={lab.cache}")
    script = str(ROOT / "slurm" / "train.sbatch")
    job = lab.slurm.submit(*options, f"--output={lab.place}/out", script, *arguments, cwd=ROOT)
    lab.slurm.wait_for(job, "COMPLETED", seconds=SECONDS)
    assert_same_run(lab.place / "run", whole(), 40)


def test_a_sweep_is_an_array(lab: Lab) -> None:
    rates = ("1e-3", "2e-3", "4e-3")
    done = lab.command(
        "train", "-m", *lab.ask("sweep")[:3], f"run.root={lab.place}", f"data.cache={lab.cache}",
        f"optimizer.lr={','.join(rates)}", "schedule.total=10 steps", "cluster.nodes=1",
        "cluster.devices_per_node=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = sorted(path for path in lab.place.glob("tiny.*"))
    assert len(runs) == 3
    numbers = {lab.number(run.name) for run in runs}
    assert len({number.partition("_")[0] for number in numbers}) == 1
    assert {number.partition("_")[2] for number in numbers} == {"0", "1", "2"}
    for run in runs:
        lab.finish(run.name)
    assert sorted(metrics(run)[-2]["lr"] for run in runs) == [float(rate) for rate in rates]


def test_what_was_submitted_is_what_runs(lab: Lab, whole: Whole) -> None:
    everything = lab.slurm.submit("-N4", "--exclusive", "--wrap=sleep 600", cwd=lab.place)
    lab.slurm.wait_for(everything, "RUNNING")
    copy = lab.place / "checkout"
    for part in ("llm_pretrain", "launch", "conf"):
        shutil.copytree(ROOT / part, copy / part)
    shutil.copytree(ROOT / "tests" / "conf", lab.place / "conf")
    overrides = [o if "config-dir" not in o else f"--config-dir={lab.place / 'conf'}"
                 for o in lab.ask("run")]  # fmt: skip
    env = {**lab.slurm.environment(), "TINY_CORPUS": str(lab.corpus), "PYTHONPATH": str(copy)}
    done = command("train", *overrides, cwd=copy, **env)
    assert done.returncode == 0, done.stderr
    # Before the job begins, code and configuration become others.
    (copy / "llm_pretrain" / "train" / "loop.py").write_text("raise RuntimeError('edited')\n")
    tiny_yaml = lab.place / "conf" / "experiment" / "tiny.yaml"
    tiny_yaml.write_text(tiny_yaml.read_text().replace("3e-3", "1.0"))
    lab.slurm.cancel([everything])
    assert_same_run(lab.finish("run"), whole(), 40)


@pytest.mark.parametrize("how", ["TERM", "requeue", "preempted"])
def test_interrupted_and_requeued(lab: Lab, whole: Whole, how: str) -> None:
    long = (f"schedule.total={LONG} steps", "eval.every=100 steps", "checkpoint.every=50 steps")
    partition = ("+cluster.slurm.sbatch.partition=low",) if how == "preempted" else ()
    job = lab.train("run", *long, *partition)
    lab.reach("run", 20)
    if how == "TERM":
        lab.slurm.run("scancel", "--signal=TERM", job)
    elif how == "requeue":
        lab.slurm.requeue(job)
    else:
        other = lab.slurm.submit("-p", "high", "-N4", "--exclusive", "--wrap=true", cwd=lab.place)
        lab.slurm.wait_for(other, "COMPLETED")
    run = lab.finish("run")
    assert len(lab.starts("run")) == 2
    assert_same_run(run, whole(*long), LONG)


@pytest.mark.slow
def test_time_limit(lab: Lab, whole: Whole) -> None:
    long = ("schedule.total=250 steps", "eval.every=125 steps", "checkpoint.every=125 steps")
    # No time for a signal, as if it were lost: the run knows itself when the job ends.
    limit = ("cluster.slurm.sbatch.time='00:01:00'", "cluster.slurm.signal_seconds=1")
    slow = ("data.global_batch=32", "logger.every=50 steps")
    job = lab.train("run", *long, *limit, *slow)
    run = lab.finish("run", seconds=600)
    assert int(lab.slurm.job(job)["Restarts"]) == len(lab.starts("run")) - 1
    assert "stopped by the job's time limit" in lab.log("run")
    # It saved where it stopped, and did nothing twice.
    assert all(step % 125 for step in lab.starts("run")[1:])
    assert_same_run(run, whole(*long, *slow), 250)


def test_a_node_fails(lab: Lab, whole: Whole) -> None:
    long = (f"schedule.total={LONG} steps", "eval.every=100 steps", "checkpoint.every=20 steps")
    lab.train("run", *long)
    lab.reach("run", 50)
    victim = record(lab.place / "run")["sessions"][0]["host"]
    lab.slurm.power_off(victim)
    run = lab.finish("run")
    lab.slurm.boot(victim)
    first, second = lab.starts("run")
    assert first == 0
    # At most one interval of work is done again.
    assert second >= 40
    assert record(run)["sessions"][1]["host"] != victim
    assert (run / "failed-nodes").read_text() == f"{victim}\n"
    assert_same_run(run, whole(*long), LONG)


def test_always_crashing_is_given_up(lab: Lab) -> None:
    # What every rank begins with, before there is a Python to account for it.
    job = lab.train("run", "cluster.slurm.tries=2", "cluster.slurm.bind=[/bin/false]")
    lab.slurm.wait_for(job, "FAILED", seconds=SECONDS)
    assert "given up after 2 starts without progress" in lab.log("run")
    assert lab.slurm.job(job)["Restarts"] == "1"
    said = lab.command("status", str(lab.place)).stdout
    assert "failed" in said
    assert "FAILED" in said


def test_bad_input_is_not_tried_again(lab: Lab) -> None:
    job = lab.train("run", "data.sources.words.path=/nowhere/at/all.jsonl")
    lab.slurm.wait_for(job, "FAILED", seconds=SECONDS)
    assert "/nowhere/at/all.jsonl" in lab.log("run")
    assert lab.slurm.job(job)["Restarts"] == "0"


def test_a_rank_that_hangs_is_named_and_its_node_avoided(lab: Lab, whole: Whole) -> None:
    wrapper = lab.place / "hang.sh"
    wrapper.write_text(HANG.format(metrics=lab.place / "run" / "metrics.jsonl"))
    wrapper.chmod(0o755)
    long = ("schedule.total=200 steps", "eval.every=100 steps")
    patience = ("engine.timeout=10", "checkpoint.timeout=10")
    lab.train("run", *long, *patience, f"cluster.slurm.bind=[{wrapper}]")
    run = lab.finish("run")
    first, second = record(run)["sessions"]
    node = first["nodes"][1]
    assert f"No answer from rank 3 on {node}" in lab.log("run")
    assert (run / "failed-nodes").read_text() == f"{node}\n"
    assert node not in second["nodes"]
    # Each of the others had the time to write down what it waited in. It may have, too: Slurm wakes
    # what it ends.
    dumps = {path.name for path in (run / "flight-recorder" / "session-1").iterdir()}
    assert dumps >= {f"rank-{rank:04d}.json" for rank in range(3)}
    assert_same_run(run, whole(*long), 200)


def test_refused_by_slurm(lab: Lab) -> None:
    done = lab.command("train", *lab.ask("run", "+cluster.slurm.sbatch.partition=nowhere"))
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "not submitted" in lab.command("status", str(lab.place)).stdout
    assert json.loads((lab.place / "run" / "job.json").read_text())["error"]
    run = lab.place / "run"
    again = lab.command("train", f"resume={run}", "cluster.slurm.sbatch.partition=main")
    assert again.returncode == 0, again.stderr
    lab.finish("run")
