"""Comparing many branches: what it costs grows with their number, and with nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.records import Job
from llm_pretrain.runs import Run
from tests.audit import operations
from tests.branch.branch_family import compared, family, trunk

Cli = Callable[..., int]
OPERATIONS = 5
"""On files for a branch that exists: is it there, job.json, run.json, config.yaml; and one more,
its lock, when it says that it is running."""


@pytest.mark.parametrize("jobs", [False, True])
def test_operations_on_files_grow_with_the_branches(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, jobs: bool
) -> None:
    monkeypatch.setenv("PATH", "")  # no Slurm that could be asked
    counts = []
    for branches in (8, 16, 32):
        parent, found = family(tmp_path, branches)
        existing = [Run.open(branch.path) for branch in found if Run.exists(branch.path)]
        for run in existing if jobs else ():
            run.write_job(Job(name=run.path.name, submitted="2026-01-01", code=""))
        with operations(tmp_path) as seen:
            assert cli("branch", "plan", f"parent={parent.path}") == 0
        counts.append(len(seen))
        for branch in found:
            of_it = sum(Path(path).is_relative_to(branch.path) for path in seen)
            assert of_it <= (OPERATIONS if Run.exists(branch.path) else 1)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
    # Of 8 more, 4 exist, and of these 2 say that they are running; Slurm's word needs every lock.
    assert counts[1] - counts[0] == 4 * OPERATIONS + 4 - (0 if jobs else 2)


def test_work_grows_with_the_branches(tmp_path: Path) -> None:
    calls = []
    for branches in (8, 16, 32):
        parent, _ = family(tmp_path, branches)
        count = 0

        def counting(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counting)
        try:
            compared(parent)
        finally:
            sys.setprofile(None)
        calls.append(count)
    assert calls[2] - calls[1] < 2.2 * (calls[1] - calls[0])


class Counted(int):
    """A number that counts how often one like it is compared."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) > int(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int(self) == other

    def __hash__(self) -> int:
        return hash(int(self))


def test_checkpoints_are_searched_not_gone_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = 64
    parent = trunk(tmp_path / "trunk", branches)
    steps = CheckpointStore(parent.checkpoints).steps()
    monkeypatch.setattr(CheckpointStore, "steps", lambda _: [Counted(step) for step in steps])
    rows = compared(parent)
    assert {row.action for row in rows} == {"start", "impossible"}
    # Three searches among 640, of 10 comparisons each, for every branch.
    assert Counted.comparisons < 40 * branches
