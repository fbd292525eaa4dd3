"""Tables and published runs as points: what is read, what is refused, what is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain.errors import UserError
from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.reanalyse.load import load
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.paper import config, points_of
from llm_pretrain.scaling.points import Point
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
        (f"{HEAD},seed\n1e8,1e9,3,1.7\n", "seed: '1.7' is no whole number"),
        (f"{HEAD},group\n1e8,1e9,3,1\n", "unknown column 'group'"),
        (f"{HEAD}\n1e8,1e9,3,4\n", "row 1 has 4 cells and the first line has 3"),
        (f"{HEAD}\n1e8,1e9,3\n\n1e8,1e9\n", "row 2 has 2 cells and the first line has 3"),
        (f"{HEAD},loss\n1e8,1e9,3,4\n", "column loss twice"),
        (f"{HEAD}\n1e8,1e9,{'3' * 200_000}\n", "no table with commas (field larger"),
        (f"{HEAD}\n", "needs rows with the columns params, tokens, loss"),
    ],
)
def test_refused_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read([written(tmp_path, text)], Counting())
    assert message in str(caught.value)
    assert "runs.csv" in str(caught.value)


@pytest.mark.parametrize("seed", [[1], 1.7, True, "a"])
def test_a_seed_is_a_whole_number(tmp_path: Path, seed: object) -> None:
    rows = [{"params": 1e8, "tokens": 1e9, "loss": 3, "seed": seed}]
    with pytest.raises(UserError, match=r"row 1: seed: '.*' is no whole number"):
        read([written(tmp_path, json.dumps(rows), "runs.json")], Counting())


def test_a_table_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(f"\ufeff{HEAD}\r\n1e8,1e9,3\r\n\r\n".encode())
    assert [p.loss for p in read([path], Counting()).points] == [3.0]


def test_the_same_runs_twice(tmp_path: Path) -> None:
    """One file is no two; equal rows may be two results, and are told."""
    path = written(tmp_path, f"{HEAD}\n1e8,1e9,3\n1e8,2e9,2.9\n1e8,1e9,3\n")
    found = read([path], Counting())
    assert found.notes == ("runs.csv: row 3 is equal to row 1 and counts as one more result.",)
    assert len(found.points) == 3
    with pytest.raises(UserError, match="given twice"):
        read([path, tmp_path / "." / "runs.csv"], Counting())
    (tmp_path / "link.csv").symlink_to(path)
    with pytest.raises(UserError, match=r"link\.csv: given twice"):
        read([path, tmp_path / "link.csv"], Counting())


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
