"""optimizer.lr=auto: the rate of another run, moved by the theory's ratio, and where it is from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from llm_pretrain.theory.bound import last_iterate
from tests.support import record, tiny

Cli = Callable[..., int]
BASE = ["experiment=demo", "plan=[]", "schedule.total=400 steps", "schedule.warmup=0 steps"]
WSD = "schedule.cooldown={length: 20%, shape: linear}"
LINEAR = "schedule.cooldown={length: rest, shape: linear}"


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """A run whose rate, 1e-3, is the best for 400 steps with a linear cooldown of 20%."""
    asked = [*BASE, WSD, "optimizer.lr=1e-3", f"run.dir={tmp_path / 'best'}"]
    return Run.create(compose(asked), new_record("best", total=400)).path


def auto(best: Path, *overrides: str) -> float:
    config = compose([*BASE, "optimizer.lr=auto", f"tuned_on={best}", *overrides])
    return config.optimizer.lr


def test_reference_ratios(best: Path) -> None:
    # ln of the ratio to a full linear decay at T = 400: 0.670, by the authors' package.
    assert auto(best, LINEAR) / 1e-3 == pytest.approx(0.0495631307 / 0.0253736614, rel=1e-5)
    assert auto(best, WSD) == 1e-3


def test_a_longer_run_has_a_lower_rate(best: Path) -> None:
    longer = auto(best, WSD, "schedule.total=4000 steps")
    assert longer / 1e-3 == pytest.approx(0.0081182938 / 0.0253736614, rel=1e-5)


def test_real_schedules_count_with_their_warmup(best: Path) -> None:
    found = auto(best, WSD, "schedule.warmup=40 steps")
    warm = [0.01 + 0.99 * t / 40 for t in range(40)] + [1.0] * 280
    down = [1 - t / 80 for t in range(80)]
    ratio = last_iterate([*warm, *down]).optimal_rate / 0.0253736614
    assert found / 1e-3 == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.lr=auto"], ["tuned_on: missing", "tuned_on=runs/best"]),
        (["optimizer.lr=auto", "tuned_on=nowhere"], ["tuned_on: 'nowhere' is not a run"]),
        (["optimizer.lr=auto", "tuned_on=BEST", "model.width=64"], ["model.width: 128 -> 64"]),
        (["optimizer.lr=atuo"], ["optimizer.lr: got 'atuo'"]),
    ],
)
def test_bad_input(
    best: Path,
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    words: list[str],
) -> None:
    asked = [o.replace("BEST", str(best)) for o in overrides]
    assert cli("train", *BASE, f"run.root={best.parent}", "run.name=new", *asked) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert not (best.parent / "new").exists()


def test_it_is_seen_before_training_and_recorded(
    cli: Cli, cache: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["schedule.total=6 steps", "schedule.warmup=0 steps", f"data.cache={cache}"]
    assert cli("train", *tiny(tmp_path / "a", *short, WSD)) == 0
    capsys.readouterr()
    new = tiny(tmp_path / "b", *short, LINEAR, "optimizer.lr=auto", f"tuned_on={tmp_path / 'a'}")
    assert cli("train", *new) == 0
    said = capsys.readouterr().out
    written = record(tmp_path / "b")
    assert "times the 0.003 that was tuned in" in written["lr_source"]
    assert said.startswith(written["lr_source"])
    assert cli("train", *new) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert record(tmp_path / "a")["lr_source"] is None
