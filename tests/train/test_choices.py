"""What a run computes with: said, kept in its record, and free to change where numbers do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.runs import Run
from tests.support import metrics, record, tensors

Train = Callable[..., int]
Cli = Callable[..., int]
SHORT = ("schedule.total=4 steps", "schedule.warmup=2 steps", "checkpoint.every=0 steps")


def test_a_run_says_what_it_computes_with(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    assert train(place, *SHORT) == 0
    computes = {
        "attention": "flash",
        "products": "fp32",
        "loss": "all logits at once",
        "blocks": "not compiled",
    }
    assert record(place)["sessions"][-1]["computes"] == computes
    lines = capsys.readouterr().err.splitlines()
    for part, by in computes.items():
        assert f"tiny: {part}: {by}" in lines


@pytest.mark.parametrize(
    "override,part,by",
    [
        ("model.attention=math", "attention", "math"),
        ("precision=bf16", "products", "bf16"),
        ("engine.loss=plain", "loss", "all logits at once"),
        ("engine.loss=chunked", "loss", "logits of 32 positions at a time"),
    ],
)
def test_what_is_asked_for_is_taken(
    train: Train, tmp_path: Path, override: str, part: str, by: str
) -> None:
    place = tmp_path / "run"
    assert train(place, *SHORT, override) == 0
    assert record(place)["sessions"][-1]["computes"][part] == by


@pytest.mark.parametrize("name", ["fa3", "cudnn", "flex"])
def test_a_kernel_that_does_not_work_here(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    place = tmp_path / "run"
    assert train(place, *SHORT, f"model.attention={name}") == 2
    assert not place.exists()
    message = capsys.readouterr().err
    assert f"model.attention: {name} cannot be used: " in message
    assert "use auto or one of flash, math" in message


def test_a_resume_may_compute_with_something_else(train: Train, cli: Cli, tmp_path: Path) -> None:
    """It goes on as if nothing had changed, but for rounding."""
    place, whole = tmp_path / "run", tmp_path / "whole"
    assert train(place, *SHORT) == 0
    longer = "schedule.total=8 steps"
    changes = ("model.attention=math", "engine.loss=chunked", "engine.recompute=selective")
    assert cli("train", f"resume={place}", longer, *changes) == 0
    assert train(whole, *SHORT, longer) == 0
    first, second = (session["computes"] for session in record(place)["sessions"])
    assert (first["attention"], second["attention"]) == ("flash", "math")
    assert second["loss"] != first["loss"]
    losses, others = (
        {row["step"]: row["loss"] for row in metrics(run) if "loss" in row}
        for run in (place, whole)
    )
    assert losses == pytest.approx(others, rel=1e-6)
    assert list(losses) == list(range(1, 9))


def test_a_resume_may_not_change_what_attention_sees(
    train: Train, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    assert train(place, *SHORT) == 0
    before = record(place), tensors(place, 4)["rng"].keys()
    longer = "schedule.total=8 steps"
    assert cli("train", f"resume={place}", longer, "model.document_mask=true") == 2
    message = capsys.readouterr().err
    assert "a resume cannot change" in message
    assert "model.document_mask: False -> True" in message
    assert (record(place), tensors(place, 4)["rng"].keys()) == before
    assert not Run.open(place).config.model.document_mask
