"""Branches are recognised by fingerprints exactly as they are by their whole configs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain import runs
from llm_pretrain.branch.plan import Branch, Origin, expand
from llm_pretrain.branch.reconcile import wanted
from llm_pretrain.config.compose import compose
from llm_pretrain.config.diff import differences, fingerprint, own_trajectory, trajectory
from llm_pretrain.config.schema import BranchSpec
from llm_pretrain.duration import steps
from llm_pretrain.records import Parent
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from tests.branch.branch_family import compared, create, trunk


def edit(run: Run, old: str, new: str) -> None:
    """Change config.yaml by hand."""
    text = run.config_path.read_text()
    assert text.count(old) == 1
    run.config_path.write_text(text.replace(old, new))


def forget(run: Run, **instead: Any) -> None:
    """Make run.json that of a version without fingerprints, or with others."""
    data = json.loads(run.record_path.read_text())
    noted = data.pop("fingerprints")
    if instead:
        data["fingerprints"] = {**noted, **instead}
    run.record_path.write_text(json.dumps(data))


def as_it_is(parent: Run, branch: Branch) -> None:
    create(parent, branch)


def another_rate(parent: Run, branch: Branch) -> None:
    optimizer = replace(branch.config.optimizer, lr=0.003)
    create(parent, branch, replace(branch.config, optimizer=optimizer))


def another_schedule(parent: Run, branch: Branch) -> None:
    cooldown = replace(branch.config.schedule.cooldown, floor=0.5)
    schedule = replace(branch.config.schedule, cooldown=cooldown)
    create(parent, branch, replace(branch.config, schedule=schedule))


def another_parent(parent: Run, branch: Branch) -> None:
    create(parent, branch, parent=Parent("trunk-00000000", branch.start))


def another_start(parent: Run, branch: Branch) -> None:
    create(parent, branch, parent=Parent(parent.record.id, branch.start + 20))


def a_prolonged_parent(parent: Run, branch: Branch) -> None:
    create(parent, branch)
    schedule = replace(parent.config.schedule, total=steps(2_000_000))
    parent.rewrite_config(replace(parent.config, schedule=schedule))


def another_rate_by_hand(parent: Run, branch: Branch) -> None:
    edit(create(parent, branch), "adamw\n  lr: 0.001\n", "adamw\n  lr: 0.003\n")


def another_engine_by_hand(parent: Run, branch: Branch) -> None:
    edit(create(parent, branch), "recompute: none", "recompute: block")


def another_engine_by_a_resume(parent: Run, branch: Branch) -> None:
    run = create(parent, branch)
    engine = replace(run.config.engine, recompute="block")
    run.rewrite_config(replace(run.config, engine=engine))


def killed_between_the_two_files(parent: Run, branch: Branch) -> None:
    run = create(parent, branch)
    before = run.record_path.read_text()
    optimizer = replace(branch.config.optimizer, lr=0.003)
    run.rewrite_config(replace(branch.config, optimizer=optimizer))
    run.record_path.write_text(before)


def fingerprints_of_another_version(parent: Run, branch: Branch) -> None:
    forget(create(parent, branch), trajectory="0" * 16, schedule="0" * 16)


SAME = (
    *(as_it_is, a_prolonged_parent, another_engine_by_hand, another_engine_by_a_resume),
    fingerprints_of_another_version,
)
TAKEN = {
    another_rate: "optimizer.lr: 0.003 -> 0.001",
    another_schedule: "lineage",
    another_parent: "lineage",
    another_start: "lineage",
    another_rate_by_hand: "optimizer.lr: 0.003 -> 0.001",
    killed_between_the_two_files: "optimizer.lr: 0.003 -> 0.001",
}
READS = (another_engine_by_hand, fingerprints_of_another_version)
"""Where only config.yaml can tell that it is the same run."""


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
@pytest.mark.parametrize("case", [*SAME, *TAKEN], ids=lambda case: case.__name__)
def test_fingerprints_say_what_the_configs_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: Callable[[Run, Branch], None],
    noted: bool,
) -> None:
    parent = trunk(tmp_path / "trunk", 1, "optimizer.lr=0.001")
    (branch,) = wanted(parent, parent.config.plan)
    case(parent, branch)
    run = Run.open(branch.path)
    if not noted:
        forget(run)
    parent = Run.open(parent.path)
    (branch,) = wanted(parent, parent.config.plan)
    assert is_the_run(run, parent, branch) == (case in SAME)
    parsed: list[Path] = []
    read = runs.read
    monkeypatch.setattr(runs, "read", lambda path: parsed.append(path) or read(path))
    (row,) = compared(parent)
    if case in TAKEN:
        assert (row.status, row.action) == ("taken", "impossible")
        assert row.reason == f"{run.path} is another run; move it away ({TAKEN[case]})"
    else:
        assert (row.status, row.action, row.reason) == ("created", "continue", "")
        assert (run.config_path in parsed) == (case in READS or not noted)


def is_the_run(run: Run, parent: Run, branch: Branch) -> bool:
    """Whether the run is the branch, by all that their configs say."""
    plain = {"past": None}
    changed = differences(trajectory(run.config) | plain, trajectory(branch.config) | plain)
    same_rates = schedule_of(run.config) == schedule_of(branch.config)
    lineage = run.record.parent == Parent(parent.record.id, branch.start)
    return not changed and same_rates and lineage


def test_what_branches_share_is_true_of_each(tmp_path: Path) -> None:
    config = compose(["experiment=demo", f"run.dir={tmp_path / 'trunk'}", "plan=[]"])
    origin = Origin(config, "trunk-1", tmp_path / "trunk")
    for overrides in ([], ["optimizer.lr=2e-3", "data.global_batch=32", "engine.compile=true"]):
        spec = BranchSpec(at=[steps(100), steps(200), steps(10_000)], overrides=overrides)
        for branch in expand(origin, spec):
            assert branch.trajectory == fingerprint(own_trajectory(branch.config))
            assert branch.schedule == schedule_of(branch.config)
