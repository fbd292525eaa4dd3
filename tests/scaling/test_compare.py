"""Laws of two ways to train over the same models: what they see, and what is left out by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import UserError, guarded
from llm_pretrain.reanalyse.words import SOURCE
from llm_pretrain.scaling import findings
from llm_pretrain.scaling.compare import compare
from llm_pretrain.scaling.figure import draw
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.scaling.words import grouped
from tests.scaling.known import points

SIZES = [3e7, 1e8, 3e8, 1e9]


def results(source: str, seed: int = 0, noise: float = 0.001) -> list[Point]:
    """Of one source, with names of their own."""
    own = points(sizes=SIZES, noise=noise, seed=seed, source=source)
    return [replace(p, run=f"{source} {p.run}") for p in own]


COOLED, COSINES = results("cooldown"), results("cosine", 1)


def test_a_run_that_failed_is_in_no_law_and_its_partner_in_none_of_the_pairs() -> None:
    """One number that is none, one diverged, one noisy: as if these runs were not there."""
    bad = list(COOLED)
    for i, loss in ((3, math.nan), (9, 30.0), (12, bad[12].loss * 1.1)):
        bad[i] = replace(bad[i], loss=loss)
    found = compare([*bad, *COSINES], [Excluded("earlier", "unfinished")], draws=20)
    good = [p for i, p in enumerate(COOLED) if i not in (3, 9, 12)]
    partners = [p for i, p in enumerate(COSINES) if i not in (3, 9, 12)]
    clean = compare([*good, *partners], [], draws=20)
    assert found.laws["cooldown"].parametric == clean.laws["cooldown"].parametric
    assert found.laws["cosine"].parametric == clean.laws["cosine"].parametric
    assert found.differences == clean.differences
    assert found.gaps == clean.gaps
    assert found.held == clean.held
    assert found.all_cosine is not None
    assert found.all_cosine.points == tuple(COSINES)
    reasons = {one.run: one.reason for one in found.excluded}
    assert reasons["earlier"] == "unfinished"
    assert reasons[bad[3].run] == "its loss is NaN"
    assert reasons[bad[9].run].startswith("diverged: loss 30")
    assert reasons[bad[12].run].startswith("noisy: loss")
    for i in (3, 9, 12):
        assert reasons[COSINES[i].run].startswith("no cooldown of equal size and tokens")
    assert len(found.excluded) == 7


def test_what_has_no_partner_is_named() -> None:
    twice = replace(COSINES[0], run="another seed", loss=COSINES[0].loss + 0.001)
    constant = replace(COSINES[1], run="trunk", source="constant")
    average = replace(COSINES[1], run="mean", source="average")
    found = compare([*COOLED, *COSINES[:15], twice, constant, average], [], draws=20)
    reasons = {one.run: one.reason for one in found.excluded}
    assert set(reasons) == {*(p.run for p in COOLED[15:]), "another seed", "trunk", "mean"}
    assert reasons[COOLED[15].run] == "no cosine of equal size and tokens"
    assert reasons["trunk"].startswith("its source is constant")
    assert reasons["mean"].startswith("a law of averages needs runs of 3 sizes at least")
    assert set(found.laws) == {"cooldown", "cosine"}
    text = "\n".join(grouped(found.excluded))
    assert all(p.run in text for p in COOLED[15:])


def test_too_few_pairs_are_told_before_anything_is_fitted() -> None:
    with pytest.raises(UserError) as caught:
        compare([*COOLED, *COSINES[:10]], [], draws=20)
    said = str(caught.value)
    assert "at equal size and tokens needs runs of 3 sizes at least, there are 2 sizes" in said
    assert f"left out: {COOLED[10].run}: no cosine" in said
    with pytest.raises(UserError, match="no results whose source is cosine"):
        compare([*COOLED, *(replace(p, loss=math.nan) for p in COSINES)], [], draws=20)


def test_three_sizes_without_noise(tmp_path: Path) -> None:
    """Nothing is left to compare residuals by, and the two smaller sizes make no law."""
    own = [p for p in results("cooldown", noise=0) if p.params < 1e9]
    found = compare([*own, *(replace(p, source="cosine") for p in own)], [], draws=20)
    assert found.shared is None
    assert not found.held
    assert "leaves no residuals" in findings.agreement(found)
    assert findings.held(found)[0].startswith("cooldown: no law of the smaller sizes: it needs")
    draw(found, tmp_path / "figure.svg")
    assert "from the smaller sizes" not in (tmp_path / "figure.svg").read_text()


def test_of_a_table_nothing_is_said_that_it_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No source of the data and no share of cooldowns; but every run that is left out."""
    own = [*COOLED, *COSINES]
    own[3] = replace(own[3], loss=math.nan)
    lines = [f"{p.params:.0f},{p.tokens:.0f},{p.loss},{p.source},{p.run}" for p in own]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,tokens,loss,source,run", *lines]))
    page = tmp_path / "page.html"
    assert guarded(dispatch, ["laws", "compare", str(path), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    for text in (said, page.read_text()):
        assert SOURCE not in text
        assert "last 20%" not in text
        assert "What reuse saves is not said" in text
        assert f"left out: {own[3].run}: its loss is NaN" in text
    assert guarded(dispatch, ["laws", "compare", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["source"] == []
    assert data["reuse"] == []
    assert guarded(dispatch, ["laws", "fit", str(path), str(path)]) == 2
    assert "given twice" in capsys.readouterr().err
