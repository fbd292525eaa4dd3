"""Preflights that really run: alone, by torchrun, on ranks that take themselves for nodes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.nodes import Nodes
from tests.launch.nodes import start as start_nodes
from tests.support import ROOT

TIMED = {"matmul", "inside", "between", "pairs", "files"}
"""Checks that a busy machine may fail."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Runs preflights on several ranks."""
    with start_nodes(tmp_path_factory.mktemp("logs")) as started:
        yield started


def report(folder: Path) -> dict[str, Any]:
    """preflight.json."""
    loaded: dict[str, Any] = json.loads((folder / "preflight.json").read_text())
    return loaded


def failed(data: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Check and node of what fails, but for speeds."""
    return [
        (finding["check"], finding["node"])
        for finding in data["findings"]
        if finding["fails"] and not (finding["check"] in TIMED and "median" in finding["text"])
    ]


def test_alone(process: Callable[..., Any], tmp_path: Path) -> None:
    done = process("preflight", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    (rank,) = data["ranks"]
    assert rank["matmul"] > 0
    assert rank["files"]["folder"] == str(tmp_path)
    assert rank["versions"]["python"] == sys.version.split()[0]
    assert data["skipped"] == "one rank has nobody to share with"
    assert done.stderr.strip() == "fit to train: 1 node"
    assert list(tmp_path.iterdir()) == []


def test_alone_with_a_profile_of_another_device(
    cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli("preflight", "cluster=alps_clariden", "--out", str(tmp_path / "out")) == 3
    text = capsys.readouterr().out
    assert "no GPU; the profile promises NVIDIA GH200 120GB" in text
    assert "not fit to train:" in text.splitlines()[-1]
    assert not report(tmp_path / "out")["fit"]
    # One node of one is no node to exclude for what every node lacks.
    assert not (tmp_path / "out" / "exclude.txt").exists()


@pytest.mark.slow
def test_by_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "launch.preflight", f"--out={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    data = report(tmp_path)
    assert failed(data) == [], done.stdout
    assert done.returncode == (0 if data["fit"] else 1), done.stderr
    assert [one["inside"] > 0 for one in data["links"].values()] == [True, True]
    assert done.stdout.splitlines()[-1].startswith(data["summary"])


@pytest.mark.parametrize("by_slurm", [False, True])
def test_two_nodes(nodes: Nodes, tmp_path: Path, by_slurm: bool) -> None:
    done = nodes.run("a a b b", f"--out={tmp_path}", by_slurm=by_slurm)
    data = report(tmp_path)
    assert failed(data) == [], done
    assert set(done.codes.values()) == {0 if data["fit"] else 3}
    assert data["nodes"] == ["a", "b"]
    assert [rank["node"] for rank in data["ranks"]] == ["a", "a", "b", "b"]
    for one in data["links"].values():
        assert one["inside"] > 0
        assert one["between"] > 0
        assert one["pairs"] == []
    # One process of each node writes.
    assert [rank["files"] is not None for rank in data["ranks"]] == [True, False] * 2
    # The verdict is rank 0's to tell.
    assert [bool(done.output(number).strip()) for number in range(4)] == [True] + [False] * 3


def test_a_slow_rank_on_three_nodes(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "exclude.txt").write_text("z\nb\n")
    done = nodes.run("a b c", f"--out={tmp_path}", changes={"2": "slow"})
    assert set(done.codes.values()) == {3}
    data = report(tmp_path)
    assert [len(one["pairs"]) for one in data["links"].values()] == [2, 2, 2]
    slow = next(f for f in data["findings"] if f["node"] == "c" and f["check"] == "matmul")
    assert slow["ranks"] == [2]
    assert "c (matmul" in data["summary"]
    # What was excluded before stays so.
    listed = (tmp_path / "exclude.txt").read_text().splitlines()
    assert listed[:2] == ["z", "b"]
    assert "c" in listed
    assert set(listed) == {"z", "b", *data["exclude"]}
    shell = subprocess.run(
        ["bash", "-c", 'echo --exclude=$(paste -sd, "$1")', "bash", tmp_path / "exclude.txt"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout.strip() == f"--exclude={','.join(listed)}"


def test_a_node_with_other_software(nodes: Nodes, tmp_path: Path) -> None:
    nodes.run("a a b", f"--out={tmp_path}", changes={"2": "other_torch"})
    data = report(tmp_path)
    assert failed(data) == [("versions", "b")]
    assert "b" in data["exclude"]


def test_a_disk_that_is_full(nodes: Nodes, tmp_path: Path) -> None:
    nodes.run("a b", f"--out={tmp_path}", changes={"1": "full_disk"})
    data = report(tmp_path)
    (finding,) = (f for f in data["findings"] if f["check"] == "files" and f["fails"])
    assert finding["text"] == f"rank 1: {tmp_path}: File too large"
    assert "b" in data["exclude"]


def test_a_folder_that_cannot_be_made(nodes: Nodes) -> None:
    done = nodes.run("a b", "--out=/proc/self/preflight")
    assert set(done.codes.values()) == {3}
    text = done.output()
    assert "rank 1: /proc/self/preflight: No such file or directory" in text
    assert "error: /proc/self/preflight: No such file or directory: the report is not" in text
    assert "every node (files" in text.splitlines()[-1]


def test_sums_that_are_wrong(nodes: Nodes, tmp_path: Path) -> None:
    nodes.run("a b", f"--out={tmp_path}", changes={"1": "wrong_sums"})
    data = report(tmp_path)
    assert failed(data) == [("between", "a"), ("between", "b")]
    assert "a sum of 3 came out as 4 to 4" in data["findings"][0]["text"]


@pytest.mark.parametrize(
    "change,check,code",
    [
        ("hang_in_matmul", "matmul", -signal.SIGKILL),
        ("never_starts", None, None),
        pytest.param("hang_in_all_reduce", "between", -signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("die_in_all_reduce", "between", -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_does_not_answer(
    nodes: Nodes, tmp_path: Path, change: str, check: str | None, code: int | None
) -> None:
    done = nodes.run("a b c", "--seconds=16", f"--out={tmp_path}", changes={"2": change})
    data = report(tmp_path)
    # A rank that never began has no node that anybody could know.
    node = None if check is None else "c"
    assert data["absent"] == [{"ranks": [2], "node": node, "last": check}]
    assert failed(data) == [("answer", node)]
    assert data["exclude"] == [n for n in data["nodes"] if n == "c" or n in data["exclude"]]
    assert (done.codes[0], done.codes[1], done.codes.get(2)) == (3, 3, code)
    assert data["seconds"] < 16
    assert "rank 2 did not answer" in done.output()


def test_a_device_that_hangs(nodes: Nodes, tmp_path: Path) -> None:
    """The process goes on, reports it, and ends although the check never does."""
    done = nodes.run("a b", "--seconds=16", f"--out={tmp_path}", changes={"1": "stuck_device"})
    data = report(tmp_path)
    assert failed(data) == [("matmul", "b")]
    assert "did not end within" in data["findings"][0]["text"]
    assert data["skipped"] == "rank 1 has no working device"
    assert done.codes == {0: 3, 1: 3}


@pytest.mark.parametrize("change", ["never_starts", "hang_in_matmul", "hang_in_all_reduce"])
def test_rank_0_does_not_answer(nodes: Nodes, change: str) -> None:
    """Then nobody keeps the store that ranks answer to, and some calls of it have no end."""
    done = nodes.run("a b", "--seconds=8", changes={"0": change})
    assert done.codes[1] == 1
    assert "error: rank 1 on b: rank 0 did not answer" in done.output(1)


def test_other_ranks_than_asked_for(nodes: Nodes) -> None:
    done = nodes.run("a b", "cluster=h100_ib")
    assert set(done.codes.values()) == {2}
    text = done.output()
    assert "cluster.devices_per_node: 8, but 1 ranks were started on this node" in text
    assert os.linesep.join(text.splitlines()[1:]) == ""
