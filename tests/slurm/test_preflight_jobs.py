"""Preflight as a job: submitted from a login node, on a node each of which is its own."""

import json

import pytest

from tests.slurm.lab import Lab

pytestmark = pytest.mark.slurm

ASKED = ("preflight", "cluster=local_slurm", "cluster.nodes=2", "cluster.devices_per_node=1")


def test_it_submits_itself_and_tells_the_verdict(lab: Lab) -> None:
    done = lab.command(*ASKED, f"run.root={lab.place}", "--wait", "--out=checked")
    # Two cores that other tests use, too, may be slow; nothing else can be wrong here.
    report = json.loads((lab.place / "checked" / "preflight.json").read_text())
    assert done.returncode == (0 if report["fit"] else 3), done.stderr
    assert {f["check"] for f in report["findings"] if f["fails"]} <= {"matmul", "between", "files"}
    assert len(report["nodes"]) == 2
    assert set(report["nodes"]) <= {"n1", "n2", "n3", "n4"}
    assert [rank["node"] for rank in report["ranks"]] == report["nodes"]
    assert report["skipped"] is None
    assert report["summary"] in done.stdout
    assert "submitted as job" in done.stdout


def test_refused_by_slurm(lab: Lab) -> None:
    done = lab.command(*ASKED, f"run.root={lab.place}", "+cluster.slurm.sbatch.partition=nowhere")
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr


def test_a_job_that_leaves_no_report(lab: Lab) -> None:
    done = lab.command(*ASKED, f"run.root={lab.place}", "--wait", "cluster.slurm.bind=[/bin/false]")
    assert done.returncode == 1
    assert "is FAILED and left no report" in done.stderr
