"""One process, FSDP2, hybrid sharding, tensor parallelism and ZeRO train the same model."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.engine.layouts import (
    LAYOUTS,
    PAIRS,
    STATE_BOUND,
    STEPS,
    Fleet,
    assert_close_states,
    differences,
    fp32_bound,
    table,
)
from tests.support import metrics

SHARDED = {name: layout for name, layout in LAYOUTS.items() if name != "one process"}

BF16 = {"loss": 2e-4, "grad_norm": 1e-2, "val_loss": 2e-4}
"""Sums in another order become other bfloat16 numbers. Measured over the twelve steps below: in one
process, micro-batches of 1, 2, 4 and 8 spread by up to 4e-5 in the loss, 2e-3 in the norm and 3e-5
in validation; the layouts by 6e-5, 3e-3 and 7e-5."""


def assert_same_training(a: Path, b: Path, bounds: Mapping[str, float] | None = None) -> None:
    """Every loss and norm agrees; `bounds` replace those of float32."""
    for step, key, difference in differences(a, b):
        bound = bounds[key] if bounds else fp32_bound(step)
        assert difference <= bound, f"{key} at step {step}: {difference:.1e} > {bound:.1e}"


@pytest.mark.parametrize("name", SHARDED)
def test_fp32(fleet: Fleet, name: str) -> None:
    run, one = fleet.train(LAYOUTS[name]), fleet.train(LAYOUTS["one process"])
    assert_same_training(run, one)
    assert_close_states(run, one, STEPS, STATE_BOUND)


@pytest.mark.parametrize("name", PAIRS)
def test_two_ways_to_cut_at_once(fleet: Fleet, name: str) -> None:
    run, one = (fleet.train(of, "model.layers=2") for of in (PAIRS[name], LAYOUTS["one process"]))
    assert_same_training(run, one)
    assert_close_states(run, one, STEPS, STATE_BOUND)


@pytest.mark.parametrize("name", SHARDED)
def test_bf16(fleet: Fleet, name: str) -> None:
    small, bf16 = "model.layers=2", "precision=bf16"
    run = fleet.train(LAYOUTS[name], small, bf16)
    one = fleet.train(LAYOUTS["one process"], small, bf16)
    assert_same_training(run, one, BF16)
    # Before rounding has added up, the first loss tells the two precisions apart.
    exact = fleet.train(LAYOUTS["one process"], small)
    first, same, other = (metrics(r)[0]["loss"] for r in (run, one, exact))
    assert abs(first - same) < abs(first - other) / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["FSDP 2", "tensor 2", "context 2", "ZeRO-3 2"])
def test_another_model(fleet: Fleet, name: str, precision: str) -> None:
    """Norms of queries and keys, fewer key heads than query heads, a head of its own."""
    model = ("qk_norm=true", "kv_heads=2", "tied_embeddings=false", "layers=2")
    ask = (f"precision={precision}", *(f"model.{field}" for field in model))
    one = fleet.train(LAYOUTS["one process"], *ask)
    bounds = BF16 if precision == "bf16" else None
    assert_same_training(fleet.train(LAYOUTS[name], *ask), one, bounds)


OPTIONS = ["recompute=block", "reshard_after_forward=false", "prefetch=2", "offload=all"]


@pytest.mark.parametrize(
    "name,options",
    [
        *(("FSDP 2", [option]) for option in OPTIONS),
        *(("HSDP 2x2", [option]) for option in ("reshard_after_forward=false", "offload=all")),
        ("tensor 2, FSDP 2", OPTIONS),
    ],
)
def test_options_change_no_bit(fleet: Fleet, name: str, options: list[str]) -> None:
    """They move values or compute them again, and every sum keeps its order."""
    plain = fleet.train(LAYOUTS[name], "model.layers=2")
    other = fleet.train(LAYOUTS[name], "model.layers=2", *(f"engine.{o}" for o in options))
    assert metrics(other) == metrics(plain)
    assert_close_states(other, plain, STEPS, 0.0)


@pytest.mark.parametrize("name", ["FSDP 2", "HSDP 2x2", "tensor 2, FSDP 2", "context 2"])
def test_whole_gradients_between_the_passes(fleet: Fleet, name: str) -> None:
    plain = fleet.train(LAYOUTS[name], "model.layers=2")
    whole = fleet.train(LAYOUTS[name], "model.layers=2", "engine.accumulate=whole")
    assert_same_training(whole, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,options",
    [
        *((name, []) for name in ("FSDP 2", "tensor 2", "context 2", "ZeRO-1 2", "ZeRO-2 2")),
        ("FSDP 2", ["recompute=block"]),
    ],
)
def test_compiled(fleet: Fleet, name: str, options: list[str]) -> None:
    ask = ("model.layers=2", "engine.compile=true", *(f"engine.{option}" for option in options))
    one = fleet.train(LAYOUTS["one process"], "model.layers=2")
    assert_same_training(fleet.train(LAYOUTS[name], *ask), one)


def test_the_table_of_the_readme(fleet: Fleet) -> None:
    """`python -m tests.engine.table` prints it."""
    runs = {name: fleet.train(LAYOUTS[name]) for name in ("one process", "FSDP 2")}
    head, _, one, sharded = table(runs).splitlines()
    assert head.count("|") == one.count("|") == sharded.count("|")
    loss = metrics(runs["FSDP 2"])[0]["loss"]
    assert sharded.startswith(f"| FSDP 2 | {loss:.6f} |")
    assert one.endswith("| 0.0e+00 |")
