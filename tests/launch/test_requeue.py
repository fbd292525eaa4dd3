"""Which nodes the batch script of a job notes as dead, and which it asks Slurm to exclude."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT

Start = Callable[..., list[str]]

FAKE = {
    # One line for each partition of a node, as Slurm 22.05 answers.
    "sinfo": 'printf "%s\\n" "$*" >>asked; cat nodes',
    "scontrol": 'echo "$*" >>told',
    "squeue": 'case "$*" in *%x) echo "$EXCLUDED" ;; esac',
    "sleep": "",
}


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Source requeue.sh as job 7 does and end with an error: start(nodes, states, excluded) gives
    the nodes that Slurm is then told to exclude."""
    (tmp_path / "bin").mkdir()
    for name, body in FAKE.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def begin(nodes: str, states: str = "", excluded: str = "") -> str:
        (tmp_path / "nodes").write_text(states)
        (tmp_path / "told").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-c", f". {ROOT / 'launch' / 'requeue.sh'} {tmp_path} 9; exit 1"],
            cwd=tmp_path,
            env={
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "EXCLUDED": excluded,
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": nodes,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        requeued, updated = (tmp_path / "told").read_text().splitlines()
        assert requeued == "requeue 7"
        return updated.removeprefix("update JobId=7 ExcNodeList=")

    return begin


def linked(folder: Path) -> Path:
    """The file of the run that rank 0 has shown to the batch script."""
    (folder / "7" / "run").symlink_to(folder)
    return folder / "failed-nodes"


def test_the_first_start_asks_for_no_nodes(start: Start, tmp_path: Path) -> None:
    assert start("n[1-4]") == ""
    assert not (tmp_path / "asked").exists()


def test_dead_nodes_of_the_last_start_are_noted_once(start: Start, tmp_path: Path) -> None:
    start("n[1-4]")
    noted = linked(tmp_path)
    noted.write_text("n4\n")
    states = "n1 down*\nn1 down*\nn2 drained*\nn3 mixed\nn4 down\nn5 failing\n"
    told = start("n[6-9]", states)
    assert (tmp_path / "asked").read_text().split("--nodes=")[1].split()[0] == "n[1-4]"
    assert noted.read_text() == "n4\nn1\nn5\n"
    assert told == "n1,n4,n5"


def test_a_node_can_be_forgiven(start: Start, tmp_path: Path) -> None:
    start("n[1-2]")
    noted = linked(tmp_path)
    start("n[3-4]", "n1 down\nn2 down\n")
    noted.write_text("n2\n")
    assert start("n[3-4]", excluded="n[1-2]") == "n2"
    noted.unlink()
    assert start("n[3-4]", excluded="n2") == ""


def test_before_the_run_is_known(start: Start, tmp_path: Path) -> None:
    start("n[1-2]")
    assert start("n[3-4]", "n2 down\n") == "n2"
    noted = linked(tmp_path)
    assert start("n[3-4]", "n3 down\n") == "n2,n3"
    assert noted.read_text() == "n3\n"


def test_what_the_user_excluded_stays_excluded(start: Start, tmp_path: Path) -> None:
    assert start("n1", excluded="m[1-2]") == "m[1-2]"
    assert start("n2", "n1 down\n", excluded="m[1-2]") == "m[1-2],n1"
