"""Tables and published runs as points: what is read, what is refused, what is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from known import points

from llm_pretrain.errors import UserError
from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.reanalyse.load import load
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.laws import fit
from llm_pretrain.scaling.paper import config, points_of
from llm_pretrain.scaling.points import Point, sift
from llm_pretrain.scaling.read import read

PUBLISHED = Path(__file__).parent / "published.json"
HEAD = "params,tokens,loss"


def written(folder: Path, text: str, name: str = "runs.csv") -> Path:
    """A file with `text`."""
    path = folder / name
    path.write_text(text)
    return path


def test_csv_and_json_are_the_same(tmp_path: Path) -> None:
    table = written(tmp_path, f"{HEAD},source,seed\n124M, 2.5B, 3.05, cosine, 2\n2e8,4e9,,,\n")
    one, two = read([table], Counting()).points
    assert one == Point("row 1", "124M", 124e6, 2.5e9, 3.05, 6 * 124e6 * 2.5e9, "cosine", 2)
    assert math.isnan(two.loss)
    assert two.source == "runs"
    rows: list[dict[str, Any]] = [
        {"params": 124_000_000, "tokens": "2.5B", "loss": 3.05, "source": "cosine", "seed": 2}
    ]
    found = read([written(tmp_path, json.dumps(rows), "runs.json")], Counting())
    assert found.points == (one,)
    assert not found.counted
    assert not found.published


def test_given_flops_are_taken(tmp_path: Path) -> None:
    found = read([written(tmp_path, f"{HEAD},flops\n1e8,1e9,3,7e17\n")], Counting())
    assert found.points[0].flops == 7e17
    assert found.counted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params,loss\n1e8,3\n", "row 1 has no column 'tokens'; it has params, loss"),
        (f"{HEAD},lr\n1e8,1e9,3,1\n", "unknown column 'lr'"),
        (f"{HEAD}\n124,1e9,3\n", "params: 124 is too few to be a count; its unit is unknown"),
        (f"{HEAD}\n1e8,2.6,3\n", "tokens: 2.6 is too few"),
        (f"{HEAD}\n1e8,2.6X,3\n", "tokens: '2.6X' is no number, or one with K, M, B or T"),
        (f"{HEAD}\n1e8,1e9,three\n", "row 1: loss: 'three' is no number"),
        (f"{HEAD},flops\n1e8,1e9,3,1e18\n1e8,1e9,3,\n", "flops: given in 1 of 2 rows"),
        (f"{HEAD},seed\n1e8,1e9,3,a\n", "seed: 'a' is no whole number"),
        (f"{HEAD}\n", "needs rows with the columns params, tokens, loss"),
    ],
)
def test_refused_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read([written(tmp_path, text)], Counting())
    assert message in str(caught.value)
    assert "runs.csv" in str(caught.value)


def test_a_run_is_left_out_by_name_and_never_silently() -> None:
    own = points()
    bad = {
        "its loss is NaN": {"loss": math.nan},
        "its loss is inf": {"loss": math.inf},
        "its tokens are 0": {"tokens": 0.0},
        "diverged: loss 9": {"loss": 9.0},
    }
    failed = [
        Point(**{**vars(own[7]), "run": f"bad {i}", **change})
        for i, change in enumerate(bad.values())
    ]
    longer = Point(**{**vars(own[7]), "run": "risen", "tokens": own[9].tokens, "loss": 4.5})
    kept, out = sift([*own, *failed, longer])
    assert kept == own
    assert [one.run for one in out] == ["bad 0", "bad 1", "bad 2", "bad 3", "risen"]
    for reason, one in zip(bad, out, strict=False):
        assert one.reason.startswith(reason)
    assert out[-1].reason.startswith("noisy or diverged: loss 4.5, above the")
    found = fit([*own, *failed, longer], draws=20)
    assert found.excluded == tuple(out)
    assert found.points == tuple(own)


PARAMETERS = {
    "33M": 33_479_040,
    "53M": 53_027_328,
    "60M": 59_845_120,
    "93M": 93_159_040,
    "124M": 123_587_328,
    "151M": 151_905_024,
    "210M": 208_540_416,
}
"""As the authors' logs have them."""


def test_published_sizes_are_those_of_the_logs() -> None:
    found, _ = points_of(load(PUBLISHED), Counting())
    assert {p.size: p.params for p in found} == PARAMETERS
    left, _ = points_of(load(PUBLISHED), Counting(embedding="left-out"))
    assert {p.size: p.params for p in left}["124M"] == 123_587_328 - 50_304 * 768
    halved, _ = points_of(load(PUBLISHED), Counting(attention="causal"))
    for full, causal in zip(found, halved, strict=True):
        assert 0.85 < causal.flops / full.flops < 1
    own = next(p for p in found if p.size == "124M" and p.source == "cosine")
    assert own.flops == own.tokens * flops_per_token(config((12, 768)), 512, False)


def test_published_runs_are_sorted_by_source() -> None:
    found, excluded = points_of(load(PUBLISHED), Counting())
    counts = {s: sum(p.source == s for p in found) for s in {p.source for p in found}}
    assert counts == {"cooldown": 14, "cosine": 21, "constant": 21, "average": 21}
    assert len(excluded) == 3
    reasons = " ".join(one.reason for one in excluded)
    for said in ("later series", "without 'norm'", "diverged: its last loss is 7.585"):
        assert said in reasons
    losses = {(p.size, p.tokens, p.source): p.loss for p in found}
    # Final losses as printed in the logs; the average's is of 32 batches, and raised by 0.0355.
    assert losses["124M", 25_000 * 102_400, "cosine"] == pytest.approx(3.050982)
    assert losses["124M", 25_000 * 102_400, "cooldown"] == pytest.approx(3.049664)
    assert losses["210M", 62_500 * 102_400, "constant"] == pytest.approx(2.994274)
    assert losses["210M", 62_400 * 102_400, "average"] == pytest.approx(2.87986 + 0.0355)
