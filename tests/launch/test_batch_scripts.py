"""What the scripts of slurm/ ask of Slurm, and when a chain of jobs ends."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT

Slurm = Callable[..., "subprocess.CompletedProcess[str]"]

FAKE = {
    # Writes down what it is asked, with an end to each word.
    "sbatch": 'printf "sbatch" >>calls; printf " [%s]" "$@" >>calls; echo >>calls; echo 77;',
    "scancel": 'echo "scancel $*" >>calls',
    # Says what a rank would run, and ends as it is told to.
    "srun": 'while [ "$1" != sh ]; do echo "$1" >>srun; shift; done; "$@"',
    "python": 'echo "$*" >>ranks; mkdir -p "$NEW"; exit "$CODE"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    """Run a script of slurm/ in a copy of the project's folder, with stand-ins for Slurm's
    commands that note what they are asked: slurm(script, arguments, variables)."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "bin").mkdir()
    for name, body in FAKE.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def run(script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        job = variables.get("SLURM_JOB_ID")
        env = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CODE": "0",
            "NEW": "elsewhere",
            **({"SLURM_SUBMIT_DIR": str(tmp_path)} if job else {}),
            **variables,
        }
        return subprocess.run(
            ["bash", f"slurm/{script}", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def noted(folder: Path, name: str) -> list[str]:
    """What the stand-ins have noted since the last call."""
    path = folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_bash_submits_with_the_options_of_the_site(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm("train.sbatch", "a=b c", SITE="h100_ib", OPTIONS="--nodes=4 --account=a1")
    assert done.returncode == 0, done.stderr
    (call,) = noted(tmp_path, "calls")
    assert "[--gpus-per-node=8]" in call
    assert call.endswith("[--nodes=4] [--account=a1] [slurm/train.sbatch] [a=b c]")
    assert noted(tmp_path, "ranks") == []


def test_an_unknown_site_is_refused(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm("train.sbatch", SITE="atlantis")
    assert done.returncode == 2
    assert "slurm/sites/atlantis.env does not exist" in done.stderr
    assert noted(tmp_path, "calls") == []


def test_a_job_starts_the_ranks_and_ends_as_they_do(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm("train.sbatch", "experiment=demo", "a=b c", SLURM_JOB_ID="5", CODE="75")
    assert (done.returncode, done.stderr) == (75, "")
    assert noted(tmp_path, "ranks") == ["-m llm_pretrain.train experiment=demo a=b c"]
    assert "--wait=600" in noted(tmp_path, "srun")


def test_preflight_asks_for_minutes_where_the_site_asks_for_hours(
    slurm: Slurm, tmp_path: Path
) -> None:
    slurm("preflight.sbatch", "out", SITE="h100_ib")
    (call,) = noted(tmp_path, "calls")
    assert call.index("[--time=24:00:00]") < call.index("[--time=00:10:00]")
    slurm("preflight.sbatch", "out", "cluster=h100_ib", SLURM_JOB_ID="5")
    assert noted(tmp_path, "ranks") == ["-m launch.preflight --out out cluster=h100_ib"]


RUN = "run.dir=runs/a"
JOB = {"SLURM_JOB_ID": "5", "SLURM_JOB_NAME": "a"}


def test_a_chain_has_the_name_of_its_run(slurm: Slurm, tmp_path: Path) -> None:
    slurm("chain.sbatch", RUN)
    assert noted(tmp_path, "calls") == [f"sbatch [--job-name=a] [slurm/chain.sbatch] [{RUN}]"]


def test_a_chain_refuses_what_it_could_not_follow(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm("chain.sbatch", "experiment=demo")
    assert done.returncode == 2
    assert "run.dir= or resume= is missing" in done.stderr
    done = slurm("chain.sbatch", RUN, **{**JOB, "SLURM_JOB_NAME": "chain.sbatch"})
    assert done.returncode == 2
    assert "--job-name=a" in done.stderr
    assert noted(tmp_path, "calls") == []


def test_a_link_of_a_chain_queues_its_successor_first(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm("chain.sbatch", RUN, **JOB, CODE="75", OPTIONS="--nodes=2")
    assert done.returncode == 75
    (call,) = noted(tmp_path, "calls")
    assert "[--dependency=singleton] [--job-name=a]" in call
    assert call.endswith(f"[--nodes=2] [slurm/chain.sbatch] [{RUN}]")
    assert noted(tmp_path, "ranks") == [f"-m llm_pretrain.train {RUN}"]


@pytest.mark.parametrize("code", ["0", "2"])
def test_a_chain_ends_when_nothing_is_left_to_do(slurm: Slurm, tmp_path: Path, code: str) -> None:
    done = slurm("chain.sbatch", RUN, **JOB, CODE=code)
    assert done.returncode == int(code)
    assert noted(tmp_path, "calls")[1:] == ["scancel 77"]
    assert not (tmp_path / "runs" / ".chain-a").exists()


def test_a_chain_ends_when_the_ranks_cannot_be_started(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm("chain.sbatch", RUN, **JOB, VENV="/no/such/venv")
    assert done.returncode == 2
    assert noted(tmp_path, "ranks") == []
    assert noted(tmp_path, "calls")[1:] == ["scancel 77"]


def test_a_chain_ends_after_so_many_jobs_without_a_checkpoint(slurm: Slurm, tmp_path: Path) -> None:
    def link(step: int | None) -> int:
        new = f"runs/a/checkpoints/step-{step:06d}" if step else "elsewhere"
        return slurm("chain.sbatch", RUN, **JOB, CODE="1", NEW=new, TRIES="2").returncode

    # The first saves, so the two after it may fail; the fourth counts and gives up.
    for step in (5, None, None):
        assert link(step) == 1
        assert len(noted(tmp_path, "calls")) == 1
    noted(tmp_path, "ranks")
    assert link(None) == 1
    assert noted(tmp_path, "calls") == []
    assert noted(tmp_path, "ranks") == []
    # Begun again by hand, it counts anew; more than six digits of a step are no trouble.
    for step in (None, 999999, 1000000, None, None):
        assert link(step) == 1
        assert len(noted(tmp_path, "calls")) == 1
    assert link(None) == 1
    assert noted(tmp_path, "calls") == []
