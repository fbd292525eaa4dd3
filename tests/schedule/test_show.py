"""`schedule show`: what it prints is what a run trains with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., int]
ASKED = ("experiment=demo", "schedule=wsd", "schedule.total=1000 steps", "schedule.warmup=50 steps")


def test_for_programs(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("schedule", "show", *ASKED, "plan=[]", "optimizer.lr=1e-3", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [(p["kind"], p["start"], p["end"]) for p in data["phases"]] == [
        ("warmup", 0, 50), ("constant", 50, 800), ("cooldown", 800, 1000),
    ]  # fmt: skip
    assert data["phases"][2]["start_tokens"] == 800 * 8 * 256
    assert len(data["lr"]) == data["total"] == 1000
    assert data["lr"][850] == pytest.approx(1e-3 * 0.5)


def test_for_people(cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    assert cli("schedule", "show", *ASKED, "plan=[]", f"--png={picture}") == 0
    out = capsys.readouterr().out
    for word in ("warmup", "cooldown", "1-sqrt", "1,638,400", "learning rate by step"):
        assert word in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["shwo"], "did you mean 'show'"),
        (["show", "runs/none"], "runs/none: not a run"),
        (["show", "--png", "a.pdf"], "'a.pdf' does not end in .png"),
        (["show", "--png"], "--png: needs one FILE.png"),
        (["show", "--fast"], "--fast: schedule show has no such option; valid: --json"),
        (["show", "schedule.cooldwn.length=5%"], "did you mean 'schedule.cooldown'"),
        (["show", f"--png={Path('/proc/none/a.png')}"], "--png: "),
    ],
)
def test_bad_input(
    cli: Cli, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert cli("schedule", *arguments) == 2
    assert word in capsys.readouterr().err
