"""Ours beside Hugging Face's model, and one run beside another: how far apart they are."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fp8_gap, peers
from benchmarks.gpu import plan
from llm_pretrain.config.compose import compose

SMALL = [*plan.TINY, f"data.sequence_length={plan.TINY_SEQUENCE}"]
BATCH = ["data.micro_batch=2", "data.global_batch=2"]


def test_peers_compute_the_same() -> None:
    """Two implementations of the model, the loss, clipping and AdamW, over six updates."""
    grouped = ["model.heads=4", "model.tied_embeddings=false"]
    config = compose([*SMALL, *BATCH, *grouped, "optimizer.lr=1e-2"])
    for apart in (False, True):
        result = peers.measure(config, peers.Turns(2, 2, 2), apart=apart)
        assert max(result["largest_difference"].values()) < 1e-4
        first = result["first_loss"]
        assert first[peers.OURS] == pytest.approx(math.log(config.model.vocab_size), abs=0.05)
        assert [row["repetitions"] for row in result["rows"]] == [2] * len(result["rows"])


def test_in_bf16_there_is_a_peer_with_weights_in_bf16() -> None:
    config = compose([*SMALL, *BATCH, "precision=bf16"])
    result = peers.measure(config, peers.Turns(1, 1, 2), apart=False)
    assert set(result["first_loss"]) == {peers.OURS, peers.MIXED, peers.PURE}
    assert 0 < max(result["first_difference"].values()) < 1e-2


def test_a_paired_difference_has_the_error_of_the_differences() -> None:
    gap = fp8_gap.paired([1.0, 5.0, 9.0, 2.0], [1.5, 5.25, 9.5, 2.75])
    differences = [0.5, 0.25, 0.5, 0.75]
    assert gap.mean == statistics.mean(differences) == 0.5
    assert gap.stderr == pytest.approx(math.sqrt(0.125 / 3 / 4))
    assert gap.count == 4
    assert fp8_gap.blocks([9.0, 1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]


def test_the_gap_of_no_change_is_zero_and_of_another_rate_is_not(tmp_path: Path) -> None:
    def gap(other: str) -> dict[str, Any]:
        out = tmp_path / "gap.json"
        small = [*plan.TINY, f"data.cache={tmp_path / 'cache'}", "model.vocab_size=512"]
        arguments = ["--quick", "--steps", "6", "--other", other, "--out", str(out)]
        fp8_gap.main([*arguments, *small])
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    same = gap("logger.every=3 steps")
    assert same["steps"] == 6
    assert same["held_out"] == {"mean": 0.0, "stderr": 0.0, "count": 16}
    slower = gap("optimizer.lr=1e-9")
    assert slower["held_out"]["mean"] > 5 * slower["held_out"]["stderr"] > 0
    one, other = (run["losses"] for run in slower["runs"])
    assert one[0] == other[0]  # the same values and the same batch
