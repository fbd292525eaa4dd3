"""The command on an excerpt: the page, the numbers, and what it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded
from llm_pretrain.reanalyse.halves import extrapolate, selected
from llm_pretrain.reanalyse.load import load

HERE = Path(__file__).parent
EXCERPT = HERE / "excerpt.json"
SECTIONS = ("cosine", "shapes", "rates", "halves", "predictor")


def run(*arguments: object) -> int:
    """The exit code of the command, in this process."""
    return guarded(dispatch, ["reanalyse", *map(str, arguments)])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The page and the numbers of one run over the excerpt."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("llm_pretrain.reanalyse.command.write", said.append)
        page = tmp_path_factory.mktemp("page") / "page.html"
        assert run(EXCERPT, "--json", "--out", page) == 0
    return page.read_text(encoding="utf-8"), json.loads("".join(said))


@pytest.mark.slow
def test_page_has_its_sections_and_source(answers: tuple[str, dict[str, Any]]) -> None:
    page, data = answers
    places = [page.index(f'<section id="{name}">') for name in SECTIONS]
    assert places == sorted(places)
    head = page[page.index("<body>") : places[0]]
    for said in ("MIT licence", "Fabian Schaipp", "2405.18392", "2501.18965", "26 runs"):
        assert said in head
    for name in SECTIONS:
        section = page[page.index(f'<section id="{name}">') :].partition("</section>")[0]
        first = section.partition("<p>")[2].partition("</p>")[0]
        drawn = 'class="plotly-graph-div"' in section
        # One length has too few rates for a fit: nothing is drawn, and that is said.
        assert drawn == (name != "rates")
        assert ("No runs in this file to compare." in first) == (name == "rates")
    assert "Content-Security-Policy" in page
    assert "cdn.plot.ly" not in page.partition("<body>")[2]
    assert data["source"] in page.replace("&#x27;", "'")


@pytest.mark.slow
def test_numbers_are_complete(answers: tuple[str, dict[str, Any]]) -> None:
    _, data = answers
    assert data["runs"] == 26
    assert len(data["diverged"]) == 1
    assert {row["total"] for row in data["cosine_and_wsd"]} == {50_000}
    assert len(data["sqrt_and_linear"]) == 3
    assert [one["title"] for one in data["halves"]] == [
        "124M, 0.001, constant",
        "124M, 0.001, linear cooldown, last 20 %",
        "60M, 0.001, constant",
    ]
    for one in data["halves"]:
        assert len(one["steps"]) == len(one["losses"]) == len(one["curve"])
        errors = [c - m for c, m in zip(one["curve"], one["losses"], strict=True)]
        assert one["worst"] == pytest.approx(max(map(abs, errors[one["fitted"] :])))
        assert one["end_error"] == pytest.approx(errors[-1])


@pytest.mark.slow
def test_summaries_are_of_the_outcomes(answers: tuple[str, dict[str, Any]]) -> None:
    found = answers[1]["predictor"]
    chosen = [s for s in found["summaries"] if s["law"] == "angular"]
    assert {s["law"] for s in found["summaries"]} == {"angular", "convex bound", "multi-power"}
    assert sum(s["count"] for s in chosen) == len(found["outcomes"])
    for summary in chosen:
        own = [o for o in found["outcomes"] if o["title"] == summary["title"]]
        errors = [abs(o["predicted"] - o["measured"]) for o in own]
        held = [e <= o["half_width"] for e, o in zip(errors, own, strict=True)]
        assert summary["mean"] == pytest.approx(math.fsum(errors) / len(errors))
        assert summary["worst"] == pytest.approx(max(errors))
        assert summary["held"] == pytest.approx(sum(held) / len(held))
    measured = {round(o["measured"], 4) for o in found["outcomes"]}
    assert {2.9660, 2.9599} <= measured


@pytest.mark.slow
def test_the_second_half_does_not_touch_the_fit(answers: tuple[str, dict[str, Any]]) -> None:
    curve = selected(load(EXCERPT))[0]
    altered = tuple(loss if i < curve.fitted else 2 * loss for i, loss in enumerate(curve.losses))
    after = extrapolate(replace(curve, losses=altered))
    assert after.curve == pytest.approx(answers[1]["halves"][0]["curve"], rel=1e-9)
    assert after.mean_error > 1
    assert curve.steps[-1] >= 49_000
    assert 1500 <= curve.steps[0] < curve.steps[curve.fitted - 1] <= 25_000


def test_the_curve_of_a_cooldown_begins_with_its_trunk() -> None:
    runs = load(EXCERPT)
    curve = next(c for c in selected(runs) if "cooldown" in c.title)
    trunk = next(r for r in runs if r.kind == "trunk" and r.size == curve.run.size).val
    begin = curve.run.val.steps[0]
    for step, loss in zip(curve.steps, curve.losses, strict=True):
        assert loss == (trunk if step < begin else curve.run.val).at(step)
    assert any(step < begin for step in curve.steps)
    assert any(step >= begin for step in curve.steps)


def test_without_curves_only_what_can_be_said_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(HERE / "finals.json") == 0
    said = " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "reanalysis.html").read_text(encoding="utf-8")
    assert said.endswith("reanalysis.html")
    for sentence in (
        "clearly below cosine at 4 of 4 horizons",
        "1-sqrt ends clearly below linear in 4 of 8 pairs and clearly above in 1.",
        "4 repeated pairs",
        "the higher the best rate",
        "No curve in this file is long enough.",
        "No prediction: it needs runs of two models with their trunks.",
    ):
        assert sentence in said
        assert sentence in page
    assert page.count('class="plotly-graph-div"') == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "cannot be read"),
        ([str(HERE / "excerpt.md")], "no JSON"),
        (["a.json", "b.json"], "takes one RUNS.json; got a.json b.json"),
        (["--json"], "takes one RUNS.json; got none"),
        (["--jsn", "a.json"], "--jsn: reanalyse has no such option; did you mean '--json'?"),
        ([str(EXCERPT), "--out"], "--out: needs one FILE.html"),
        ([str(EXCERPT), "--out="], "--out: needs one FILE.html"),
        ([str(EXCERPT), "--out", "no/such/page.html"], "the folder no/such does not exist"),
        ([str(EXCERPT), "--out", str(HERE)], "is a folder"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
