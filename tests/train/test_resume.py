"""Interrupted equals uninterrupted, to the last bit, at any step, for trunks and branches."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import assert_same_run, metrics, record

Train = Callable[..., int]


@pytest.mark.parametrize("step", [1, 7, 10, 39])
def test_stopped_and_resumed(
    train: Train, stop_at: Callable[[int | None], None], tmp_path: Path, step: int
) -> None:
    assert train(tmp_path / "whole") == 0
    stop_at(step)
    assert train(tmp_path / "parts") == 75
    assert record(tmp_path / "parts")["state"] == "interrupted"
    assert record(tmp_path / "parts")["step"] == step
    stop_at(None)
    assert train(tmp_path / "parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 40)
    assert [s["from_step"] for s in record(tmp_path / "parts")["sessions"]] == [0, step]


def test_stopped_twice_through_resume(
    train: Train, cli: Train, stop_at: Callable[[int | None], None], tmp_path: Path
) -> None:
    assert train(tmp_path / "whole", "precision=bf16") == 0
    for place, step in ((None, 3), ("parts", 22), ("parts", None)):
        stop_at(step)
        if place is None:
            assert train(tmp_path / "parts", "precision=bf16") == 75
        else:
            code = cli("train", f"resume={tmp_path / place}")
            assert code == (75 if step else 0)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 40)


def test_branch_stopped_and_resumed(
    train: Train, cli: Train, stop_at: Callable[[int | None], None], tmp_path: Path
) -> None:
    for name in ("whole", "parts"):
        assert train(tmp_path / name / "tiny") == 0
    ask = ("at=[20 steps]", "cooldown.length=40%")
    assert cli("branch", "apply", f"parent={tmp_path}/whole/tiny", *ask) == 0
    stop_at(27)
    assert cli("branch", "apply", f"parent={tmp_path}/parts/tiny", *ask) == 75
    stop_at(None)
    assert cli("branch", "apply", f"parent={tmp_path}/parts/tiny", *ask) == 0
    branch = "tiny.20-33.1-sqrt"
    assert_same_run(tmp_path / "whole" / branch, tmp_path / "parts" / branch, 33)
    rows = metrics(tmp_path / "parts" / branch)
    assert [r["step"] for r in rows if "loss" in r] == list(range(21, 34))


def test_same_command_again_does_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run") == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert train(tmp_path / "run") == 0
    assert "nothing to do" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert before == after


def test_prolonging_a_trunk_equals_training_it_longer(
    train: Train, cli: Train, tmp_path: Path
) -> None:
    assert train(tmp_path / "long", "schedule.total=40 steps", "eval.every=0 steps") == 0
    assert train(tmp_path / "short", "schedule.total=17 steps", "eval.every=0 steps") == 0
    assert cli("train", f"resume={tmp_path / 'short'}", "schedule.total=40 steps") == 0
    long, short = metrics(tmp_path / "long"), metrics(tmp_path / "short")
    extra = [r for r in short if r["step"] == 17 and "val_loss" in r]
    assert [r for r in short if r not in extra] == long
    assert record(tmp_path / "short")["total"] == 40


@pytest.mark.parametrize(
    "change",
    ["optimizer.lr=1e-3", "schedule.cooldown.length=5 steps", "schedule.warmup=6 steps",
     "data.sequence_length=16", "model.width=64", "run.seed=3", "schedule.total=10 steps"],
)  # fmt: skip
def test_a_resume_cannot_change_the_past(
    train: Train, cli: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    assert train(tmp_path / "run", "schedule.total=20 steps") == 0
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert cli("train", f"resume={tmp_path / 'run'}", change) == 2
    message = capsys.readouterr().err
    assert "->" in message or "steps, but 20 are done" in message
    assert (tmp_path / "run" / "config.yaml").read_text() == saved


def test_a_schedule_edited_by_hand_is_refused_with_both_shown(
    train: Train, cli: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    assert train(place, "schedule.total=20 steps") == 0
    text = (place / "config.yaml").read_text()
    text = text.replace("total: 20 steps", "total: 30 steps").replace(
        "length: 0 steps", "length: 10 steps"
    )
    (place / "config.yaml").write_text(text)
    assert cli("train", f"resume={place}") == 2
    message = capsys.readouterr().err
    assert "constant 5-20 at 0.003 -> warmup 0-5, constant 5-20 at 0.003, cooldown 20-30" in message


def test_operational_changes_are_allowed_and_recorded(
    train: Train, cli: Train, stop_at: Callable[[int | None], None], tmp_path: Path
) -> None:
    stop_at(5)
    assert train(tmp_path / "run") == 75
    stop_at(None)
    assert cli("train", f"resume={tmp_path / 'run'}", "checkpoint.every=3 steps") == 0
    assert "every: 3 steps" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_learning_rate_never_comes_from_a_checkpoint(
    train: Train, cli: Train, tmp_path: Path
) -> None:
    assert train(tmp_path / "tiny") == 0
    ask = ("at=[20 steps]", "cooldown.length=10 steps", "optimizer.lr=1e-4")
    assert cli("branch", "apply", f"parent={tmp_path / 'tiny'}", *ask) == 0
    branch = next(p for p in tmp_path.glob("tiny.20-30*"))
    rows = [r for r in metrics(branch) if "loss" in r]
    expected = [1e-4 * (1 - (u / 10) ** 0.5) for u in range(10)]
    assert [r["lr"] for r in rows] == pytest.approx(expected, rel=1e-12)
