"""Sizes that do not divide over the ranks: the same training, or a refusal with the numbers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engine.layouts import (
    STEPS,
    Fleet,
    Layout,
    assert_close_states,
    differences,
    fp32_bound,
    fsdp,
    zero,
)
from tests.support import tiny

TOTAL = f"schedule.total={STEPS} steps"
EVERY = [f"{field}={STEPS} steps" for field in ("eval.every", "checkpoint.every")]
SMALL_STATE_BOUND = 1e-4
"""A norm over two numbers amplifies rounding; measured: 2e-5."""

SMALLER_THAN_THE_RANKS = (
    *("model.width=2", "model.heads=1", "model.kv_heads=1", "model.head_dim=2", "model.ffn=5"),
    *("model.vocab_size=401", "model.qk_norm=true", "data.sequence_length=33"),
)
"""Norms and key matrices of two rows, for three ranks: one of them has none."""

ODD_AFTER_HALVING = (
    *("model.width=5", "model.head_dim=2", "model.ffn=6", "model.vocab_size=406"),
    *("model.tied_embeddings=false", "data.sequence_length=34"),
)
"""Two tensor-parallel ranks leave odd numbers of rows, which two shards then cut once more."""


@pytest.mark.parametrize(
    "layout,model",
    [
        (fsdp(3), SMALLER_THAN_THE_RANKS),
        (fsdp(3, "shard=1"), SMALLER_THAN_THE_RANKS),
        (fsdp(4, "tensor=2", parts=2), ODD_AFTER_HALVING),
        (fsdp(4, "context=2", parts=2), ODD_AFTER_HALVING),
        (zero(1, 3), SMALLER_THAN_THE_RANKS),
        (zero(2, 3), SMALLER_THAN_THE_RANKS),
        (zero(3, 3), SMALLER_THAN_THE_RANKS),
    ],
)
def test_trains_the_same_model(
    fleet: Fleet, tmp_path: Path, layout: Layout, model: Sequence[str]
) -> None:
    """Held-out batches that are not full included; and one process goes on from there."""
    ask = (*model, "data.global_batch=6", "data.micro_batch=1", "eval.sequences=7", *EVERY)
    longer = f"schedule.total={STEPS + 1} steps"
    one = fleet.train(fsdp(1), *ask, longer, experiment="tiny")
    run = tmp_path / "run"
    shutil.copytree(fleet.train(layout, *ask, TOTAL, experiment="tiny"), run)
    fleet.command(fsdp(1), f"resume={run}", longer, "engine=fsdp")
    for step, key, difference in differences(run, one):
        assert difference <= fp32_bound(step), f"{key} at step {step}: {difference:.1e}"
    for step in (STEPS, STEPS + 1):
        assert_close_states(run, one, step, SMALL_STATE_BOUND)


def test_a_micro_batch_larger_than_a_ranks_share(fleet: Fleet) -> None:
    ask = ("data.micro_batch=8", TOTAL)
    one = fleet.train(fsdp(1), *ask, experiment="tiny")
    four = fleet.train(fsdp(4), *ask, experiment="tiny")
    assert max(difference for _, _, difference in differences(four, one)) < fp32_bound(STEPS)


@pytest.mark.parametrize(
    "ranks,ask,words",
    [
        (3, ["engine.tensor=2"], ["tensor=2", "3 ranks", "a multiple of 2"]),
        (2, ["engine.shard=2", "engine.replicate=2"], ["replicate=2 x shard=2", "2 ranks"]),
        (2, ["engine.tensor=2", "model.heads=3", "model.kv_heads=3"], ["model.heads=3"]),
        (2, ["engine.tensor=2", "model.kv_heads=1"], ["engine.tensor: 2", "model.kv_heads=1"]),
        (2, ["engine.tensor=2", "model.ffn=65"], ["engine.tensor: 2", "model.ffn=65", "66"]),
        (2, ["engine.tensor=2", "model.vocab_size=513"], ["model.vocab_size=513", "514"]),
        (2, ["engine.tensor=2", "data.sequence_length=33"], ["data.sequence_length=33", "34"]),
        (2, ["engine.context=2", "model.kv_heads=1"], ["engine.context: 2", "model.kv_heads=1"]),
        (2, ["engine=deepspeed", "engine.tensor=2"], ["engine.tensor: 2", "engine=fsdp"]),
        (3, [], ["data.global_batch: 8", "3 ranks", "a multiple of 3"]),
        (2, ["data.global_batch=9", "data.micro_batch=3"], ["data.global_batch: 9", "2 ranks"]),
        (2, ["data.global_batch=12", "data.micro_batch=4"], ["data.micro_batch: 4", "6"]),
        (3, ["engine=deepspeed"], ["data.global_batch: 8", "3 ranks"]),
    ],
)
def test_refused(
    fleet: Fleet, tmp_path: Path, ranks: int, ask: list[str], words: list[str]
) -> None:
    """Every rank ends with exit code 2 and the numbers; no run directory is left."""
    command = ["train", *tiny(tmp_path / "run", f"data.cache={fleet.cache}", *ask)]
    done = fleet.zygote(fsdp(ranks)).run(ranks, command)
    assert done.codes == [2] * ranks, done
    assert "Traceback" not in done.output()
    for word in ("error: ", *words):
        assert word in done.output()
    assert not list(tmp_path.iterdir())
