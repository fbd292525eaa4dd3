"""Submitters that are killed, or told what is not so: each run still gets one job."""

import json
import os
import signal

import pytest

from tests.ranks.commands import Zygote
from tests.slurm.host import until
from tests.slurm.lab import ONE_RANK, SECONDS, Lab
from tests.support import record, tiny

pytestmark = pytest.mark.slurm

HELD = "+cluster.slurm.sbatch.hold=true"
TIMED_OUT = """
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""


def test_sbatch_fails_and_yet_slurm_has_the_job(lab: Lab) -> None:
    ask = lab.sweep("optimizer.lr=1e-3,2e-3", HELD, *ONE_RANK)
    done = lab.command("train", *ask, PATH=lab.instead_of_sbatch(TIMED_OUT))
    assert done.returncode == 0, done.stderr
    runs = sorted(path.name for path in lab.place.glob("tiny.*"))
    (job,) = lab.slurm.run("squeue", "--noheader", "--format=%F").split()
    assert [lab.number(name) for name in runs] == [f"{job}_0", f"{job}_1"]
    for i, name in enumerate(runs):
        assert f"{name}: submitted as job {job}_{i}" in done.stdout
        assert lab.status(name) == f"queued 0/40 created {job}_{i} PENDING JobHeldUser"
    again = lab.command("train", *ask)
    assert again.returncode == 0, again.stderr
    assert f"is in the hands of job {job}_1" in again.stdout
    assert lab.slurm.run("squeue", "--noheader", "--format=%F").split() == [job]


def test_a_submitter_is_killed_before_it_notes_the_number(lab: Lab) -> None:
    ask = lab.ask("run", HELD, *ONE_RANK)
    path = lab.instead_of_sbatch(f"echo $said >{lab.place}/taken\nsleep 600")
    with lab.start("train", *ask, PATH=path) as submitter:
        until((lab.place / "taken").exists, "the submission", SECONDS)
        os.killpg(submitter.pid, signal.SIGKILL)
    number = (lab.place / "taken").read_text().strip()
    assert json.loads((lab.place / "run" / "job.json").read_text())["id"] is None
    assert lab.status("run") == f"queued 0/40 created {number} PENDING JobHeldUser"
    again = lab.command("train", *ask)
    assert again.returncode == 0, again.stderr
    assert "is in the hands of" in again.stdout
    lab.slurm.run("scontrol", "release", number)
    lab.slurm.wait_for(number, "COMPLETED", seconds=SECONDS)
    # The accounts lag behind.
    until(lambda: "COMPLETED" in lab.status("run"), "the job in the accounts", SECONDS)
    assert lab.status("run") == f"finished 40/40 finished {number} COMPLETED"
    assert len(record(lab.place / "run")["sessions"]) == 1
    assert lab.submitted() == 1


def test_a_job_that_slurm_has_forgotten(lab: Lab, zygote: Zygote) -> None:
    trunk = lab.place / "trunk"
    zygote.train(1, *tiny(trunk, f"data.cache={lab.cache}", "schedule.total=20 steps"))
    apply = ("branch", "apply", f"parent={trunk}", "at=[20 steps]", "cluster=local_slurm")
    done = lab.command(*apply, *ONE_RANK, HELD)
    assert done.returncode == 0, done.stderr
    (branch,) = (path.name for path in lab.place.glob("trunk.*"))
    lab.slurm.cancel([lab.number(branch)])
    file = lab.place / branch / "job.json"
    # Of a number and a name that no job ever had.
    forgotten = {**json.loads(file.read_text()), "id": "67000000", "name": "forgotten"}
    file.write_text(json.dumps(forgotten))
    assert lab.status(branch) == "lost 20/25 created 67000000"
    done = lab.command(*apply, *ONE_RANK)
    assert done.returncode == 0, done.stderr
    assert "lost" in done.stdout
    assert f"submitted as job {lab.number(branch)}" in done.stdout
    lab.finish(branch)
