"""A longer horizon: what the theory fills in, and the branches that come of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.branch.extend import propose
from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.compose import compose, compose_branch
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.theory.bound import Terms, last_iterate

Cli = Callable[..., int]


@pytest.fixture
def trunk(tmp_path: Path) -> Run:
    """A constant run of 4,000 steps without warmup, a checkpoint every 100, as plans see it."""
    asked = ["experiment=demo", "plan=[]", "schedule.total=4000 steps", "schedule.warmup=0 steps"]
    config = compose([*asked, f"run.dir={tmp_path / 'trunk'}", "optimizer.lr=1e-3"])
    run = Run.create(config, new_record("trunk", total=4000))
    for step in range(100, 4001, 100):
        (run.checkpoints / f"step-{step:06d}").mkdir()
    return run


def branches(trunk: Run, cli: Cli, *asked: str) -> list[Path]:
    arguments = ("parent=" + str(trunk.path), "cooldown.shape=linear", "cluster.jobs=0", *asked)
    assert cli("branch", "plan", *arguments) == 0
    return sorted(trunk.path.parent.glob("trunk.*"))


def test_the_plan_shows_both_ways_and_which_is_better(
    trunk: Run, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert branches(trunk, cli, "extend=8k steps") == []
    said = capsys.readouterr().out
    # From the authors' package at T1 = 4000 and twice that: a cooldown of 0.634 of the run, whose
    # start, step 2928, is nearest to the checkpoint at 2900.
    assert "longer cooldown: 5,100 steps of it, from step 2,900 on" in said
    assert "lower rate: 0." in said
    assert said.index("preferred") < said.index("\n", said.index("longer cooldown"))
    assert "trunk.2900-8000.linear" in said
    assert "trunk.4000-8000.linear." in said


def test_the_branches_have_the_bounds_that_are_shown(trunk: Run) -> None:
    def terms(*overrides: str) -> Terms:
        base = ["experiment=demo", "plan=[]", "schedule.warmup=0 steps", "optimizer.lr=1"]
        return last_iterate(schedule_of(compose([*base, *overrides])).rates())

    wsd = "schedule.cooldown={length: 20%, shape: linear}"
    tuned = terms(wsd, "schedule.total=4000 steps").optimal_rate
    usual = terms(wsd, "schedule.total=8000 steps").at(tuned)
    asked = compose_branch(["extend=8k steps", "cooldown.shape=linear"])
    for proposal in propose(trunk, asked):
        (branch,) = expand(Origin(trunk.config, "trunk", trunk.path), proposal.spec)
        rates = branch.schedule.rates() / 1e-3
        assert last_iterate(rates).at(tuned) / usual == pytest.approx(proposal.bound, rel=1e-3)
        assert proposal.bound < 1


def test_only_one_of_them(trunk: Run, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    branches(trunk, cli, "extend=8k steps", "extend_by=rate")
    assert "trunk.2900-8000" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["extend=4k steps"], ["extend: step 4000 is not after"]),
        (["extend=200k"], ["extend", "200k", "steps"]),
        (["extend=8k steps", "at=[100 steps]"], ["leave out at and ends"]),
        (["extend=8k steps", "cooldown.shape=half-life"], ["cooldown.shape: extend knows linear"]),
    ],
)
def test_bad_input(
    trunk: Run, cli: Cli, capsys: pytest.CaptureFixture[str], asked: list[str], words: list[str]
) -> None:
    assert cli("branch", "plan", f"parent={trunk.path}", *asked) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
