"""Looking at a study: what it costs grows with its branches, and a look changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.study.reconcile import survey
from tests.audit import operations
from tests.study.study_family import describe, make

Cli = Callable[..., int]
TRUNKS = 2
OPERATIONS = 4
"""On files for a branch that exists: is it there, job.json, run.json, config.yaml."""


def test_operations_on_files_grow_with_the_branches(tmp_path: Path) -> None:
    counts = []
    for branches in (8, 16, 32):
        place = tmp_path / str(branches)
        found = make(place, TRUNKS, branches)
        with operations(place) as seen:
            survey(found)
        counts.append(len(seen))
    # Of as many branches more, half exist; of one that is missing, only that is looked at.
    each = TRUNKS * (OPERATIONS + 1) // 2
    assert counts[1] - counts[0] <= 8 * each
    assert counts[2] - counts[1] <= 16 * each


def test_a_long_plan_shows_its_trunks(
    tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 3, 80)
    before = sorted(tmp_path.rglob("*"))
    assert cli("study", "plan", *describe(tmp_path, 3, 80)) == 0
    printed = capsys.readouterr().out
    assert "beside these, branches: 120 finished, 120 missing" in printed
    assert "apply would start 120 runs now" in printed
    assert len(printed.splitlines()) < 20
    assert sorted(tmp_path.rglob("*")) == before
