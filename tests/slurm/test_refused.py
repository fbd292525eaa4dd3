"""What is refused: nothing is left of it, or the run says that Slurm did not take it."""

import json

import pytest

from tests.ranks.commands import Zygote
from tests.slurm.lab import ONE_RANK, Lab
from tests.support import tiny

pytestmark = pytest.mark.slurm


def test_slurm_refuses_an_account(lab: Lab) -> None:
    rates = "optimizer.lr=1e-3,2e-3"
    done = lab.command("train", *lab.sweep(rates, "+cluster.slurm.sbatch.account=nobody"))
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: cluster=local_slurm: Slurm did not take the job: ")
    assert "Invalid account or account/partition combination specified" in said
    runs = sorted(lab.place.glob("tiny.*"))
    assert len(runs) == 2
    for run in runs:
        assert lab.status(run.name).startswith("not submitted 0/40 created Batch job submission")
        job = json.loads((run / "job.json").read_text())
        assert (job["id"], job["error"] in said) == (None, True)
    assert lab.submitted() == 0
    again = lab.command(
        "train", f"resume={runs[0]}", "cluster.slurm.sbatch.account=root", *ONE_RANK
    )
    assert again.returncode == 0, again.stderr
    lab.finish(runs[0].name)
    assert lab.status(runs[1].name).startswith("not submitted")


def test_slurm_has_no_node_with_so_many_gpus(lab: Lab) -> None:
    done = lab.command("train", *lab.ask("run", "+cluster.slurm.sbatch.gres='gpu:8'"))
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert "Requested node configuration is not available" in said
    assert lab.status("run").startswith("not submitted")


@pytest.mark.parametrize(
    "asked,words",
    [
        (
            ["cluster.slurm.container={kind: apptainer, image: none.sif}"],
            ["cluster.slurm.container.image", "'none.sif' cannot be read"],
        ),
        (["cluster.slurm.sbatch.time='00:00:30'"], ["cluster.slurm.signal_seconds", "30 s"]),
        (["data.global_batch=6"], ["data.global_batch", "6"]),
        (["data.global_batch=6", "--dry-run"], ["data.global_batch", "6"]),
    ],
)
def test_what_cannot_work_leaves_nothing(lab: Lab, asked: list[str], words: list[str]) -> None:
    done = lab.command("train", *lab.ask("run", *asked))
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    for word in words:
        assert word in said
    assert list(lab.place.iterdir()) == []


def test_a_resume_that_cannot_work_changes_nothing(lab: Lab) -> None:
    name = lab.train("run", "+cluster.slurm.sbatch.hold=true")
    run = lab.place / "run"
    before = (run / "config.yaml").read_text()
    done = lab.command("train", f"resume={run}", "cluster.slurm.sbatch.time='00:00:30'")
    assert done.returncode == 2
    assert (run / "config.yaml").read_text() == before
    assert lab.number("run") == name


@pytest.fixture
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH without Slurm's commands."""
    return str(tmp_path_factory.mktemp("bin"))


@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_no_sbatch_on_this_machine(lab: Lab, nowhere: str, sweep: bool) -> None:
    ask = lab.sweep("optimizer.lr=1e-3,2e-3") if sweep else lab.ask("run")
    done = lab.command("train", *ask, PATH=nowhere)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: cluster=local_slurm: sbatch is not on the PATH")
    assert "--dry-run" in said
    assert list(lab.place.iterdir()) == []


@pytest.mark.parametrize("action", ["apply", "watch"])
def test_no_sbatch_for_branches(lab: Lab, zygote: Zygote, nowhere: str, action: str) -> None:
    trunk = lab.place / "trunk"
    zygote.train(1, *tiny(trunk, f"data.cache={lab.cache}", "schedule.total=10 steps"))
    ask = ("branch", action, f"parent={trunk}", "at=[10 steps]", "cluster=local_slurm")
    done = lab.command(*ask, PATH=nowhere)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert "sbatch is not on the PATH" in said
    assert list(lab.place.iterdir()) == [trunk]
    assert list((trunk / "pins").iterdir()) == []
