"""Predicted losses of branches: shown, written down, and none where too little is known."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.branch.forecast import forecast
from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.compose import compose, compose_branch
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from tests.support import metrics, record, tiny

Cli = Callable[..., int]
LONG = ("schedule.total=160 steps", "eval.every=4 steps", "checkpoint.every=80 steps")
ASKED = ("at=[2000 steps]", "cooldown.length=20%")
# A branch of those of 2000 steps that changes something that no law of this trunk knows about.
OTHER = "data.global_batch=16"


def trunk_of(place: Path, points: int) -> Run:
    """A constant run whose loss falls as a power of the step, measured so often."""
    asked = ["experiment=demo", "plan=[]", "schedule.total=2000 steps", "optimizer.lr=1e-3"]
    config = compose([*asked, f"run.dir={place / 'trunk'}", "eval.every=50 steps"])
    run = Run.create(config, new_record("trunk", total=2000))
    every = 2000 // points
    for step in range(every, 2001, every):
        loss = 2.5 + 20 * step**-0.4
        run.append_metrics(
            {"step": step, "tokens": 2048 * step, "val_loss": loss, "val_stderr": 0.01}
        )
    (run.checkpoints / "step-002000").mkdir()
    return run


def of(run: Run, *asked: str) -> tuple[list[str], str | None]:
    """Which of the branches are predicted, and why none."""
    spec = compose_branch([*ASKED, *asked])
    branches = expand(Origin(run.config, run.record.id, run.path), spec)
    found = forecast(run, branches)
    return [path.name for path in found.predictions], found.reason


def test_a_cooldown_ends_below_its_trunk(tmp_path: Path) -> None:
    run = trunk_of(tmp_path, 40)
    spec = compose_branch(list(ASKED))
    (branch,) = expand(Origin(run.config, run.record.id, run.path), spec)
    prediction = forecast(run, [branch]).predictions[branch.path]
    assert prediction.low < prediction.loss < prediction.high
    assert prediction.loss < 2.5 + 20 * branch.end**-0.4


def test_what_differs_in_more_than_its_schedule_is_not_predicted(tmp_path: Path) -> None:
    run = trunk_of(tmp_path, 40)
    assert of(run) == (["trunk.2000-2500.1-sqrt"], None)
    assert of(run, OTHER) == ([], None)
    assert len(of(run, "optimizer.lr=2e-3")[0]) == 1


def test_too_short_a_history_is_said(tmp_path: Path) -> None:
    predicted, reason = of(trunk_of(tmp_path, 4))
    assert not predicted
    assert reason is not None
    assert "usable points" in reason


def test_it_is_shown_written_down_and_compared(
    tmp_path: Path, tiny_corpus: Path, cache: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = tmp_path / "runs" / "trunk"
    assert cli("train", *tiny(trunk, f"data.cache={cache}", *LONG)) == 0
    assert cli("branch", "apply", f"parent={trunk}", "at=[160 steps]", "cooldown.length=20%") == 0
    said = capsys.readouterr().out
    run = tmp_path / "runs" / "trunk.160-200.1-sqrt"
    found, end = record(run)["prediction"], metrics(run)[-1]["val_loss"]
    words = f"{found['loss']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
    assert f"{found['loss']:.4f}" in said
    assert cli("report", str(tmp_path / "runs")) == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    off = f"{found['loss'] - end:+.4f}".replace("-", "\N{MINUS SIGN}")
    verdict = "inside" if found["low"] <= end <= found["high"] else "outside of"
    assert f"{words}; {off}, {verdict} its interval" in page
