"""The logs of the papers: read as their authors' code meant them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_pretrain.errors import UserError
from llm_pretrain.reanalyse.load import PaperRun, load, multipliers

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE.parent / "schedule" / "schedules.json").read_text())


@pytest.fixture(scope="module")
def runs() -> list[PaperRun]:
    """The excerpt."""
    return load(HERE / "excerpt.json")


def record(**changes: Any) -> dict[str, Any]:
    """One run of the file, with changes."""
    plain = {
        "name": "x", "layers": 2, "width": 8, "heads": 1, "peak_lr": 1e-3, "scheduler": "wsd",
        "decay_type": "linear", "cooldown_fraction": 0.2, "warmup_steps": 50, "steps": 1000,
        "batch_size": 50, "acc_steps": 2, "seq_len": 512,
        "val": {"step": [200, 400], "loss": [4.0, 3.5]},
    }  # fmt: skip
    return plain | changes


def loaded(place: Path, *records: dict[str, Any]) -> list[PaperRun]:
    """Records through a file."""
    path = place / "runs.json"
    path.write_text(json.dumps(records))
    return load(path)


@pytest.mark.parametrize(
    ("decay", "key"), [("linear", "linear"), ("sqrt", "sqrt"), (None, "linear")]
)
def test_cooldown_multipliers_are_the_authors(tmp_path: Path, decay: str, key: str) -> None:
    run = loaded(tmp_path, record(decay_type=decay))[0]
    values = REFERENCE["wsd"][f"{key}_final0.0"]
    at = [(t, v) for t, v in zip(REFERENCE["points"], values, strict=True) if t < 1000]
    ours = multipliers(run)
    np.testing.assert_allclose([ours[t] for t, _ in at], [v for _, v in at], atol=1e-12)
    assert run.shape == ("1-sqrt" if decay == "sqrt" else "linear")


def test_cosine_multipliers_are_those_of_onecycle(tmp_path: Path) -> None:
    run = loaded(tmp_path, record(scheduler="cos", decay_type="sqrt", cooldown_fraction=0.1))[0]
    values = REFERENCE["onecycle"]["cos"]
    at = [(t, v) for t, v in zip(REFERENCE["points"], values, strict=True) if t < 1000]
    np.testing.assert_allclose([multipliers(run)[t] for t, _ in at], [v for _, v in at], atol=1e-12)
    assert (run.kind, run.cooldown, run.shape) == ("cosine", 0, "cosine")


def test_cosine_to_zero_is_told_by_its_name(runs: list[PaperRun]) -> None:
    ends = {r.name.split("-")[1]: r.history.rates[-1] / r.peak for r in runs if "cos-" in r.name}
    assert ends["10"] == pytest.approx(0.1, abs=1e-6)
    assert ends["zero"] == pytest.approx(0, abs=1e-6)


def test_what_a_run_is(runs: list[PaperRun]) -> None:
    assert len(runs) == 26
    assert {run.tokens_per_step for run in runs} == {102_400}
    assert {r.total for r in runs if r.kind == "trunk" and r.size == (12, 768)} == {50_000}
    assert sum(run.diverged for run in runs) == 1
    # An old cosine has a cooldown fraction, an old cooldown no decay type.
    old = next(run for run in runs if run.size == (10, 512) and run.kind == "cooldown")
    assert (old.shape, old.typed) == ("linear", False)
    trunk = next(run for run in runs if run.kind == "trunk" and run.size == (10, 512))
    assert trunk.finals.steps == (7500, 12500, 17500)
    assert trunk.final == trunk.finals.losses[-1]


def test_a_cooldown_begins_where_it_was_resumed(runs: list[PaperRun]) -> None:
    cooled = [run for run in runs if run.kind == "cooldown" and run.cooldown == run.total // 10]
    assert all(run.val.steps[0] >= 20_000 for run in cooled)


def test_restarts_and_disorder(tmp_path: Path) -> None:
    curve = {"step": [400, 200, 400, 600], "loss": [3.0, 4.0, 3.2, None]}
    run = loaded(tmp_path, record(val=curve))[0]
    assert run.val.steps == (200, 400)
    assert run.val.losses == pytest.approx((4.0, 3.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("{}", "needs a list of runs"),
        ("[]", "needs a list of runs"),
        ("[1]", "run 0: needs an object"),
        (json.dumps([{"name": "x"}]), "run 0: has no 'layers'"),
        (json.dumps([record(scheduler="linear")]), "scheduler 'linear'"),
        (json.dumps([record(val={"step": [1], "loss": []})]), "1 steps but 0 losses"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(path)


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "none.json")
