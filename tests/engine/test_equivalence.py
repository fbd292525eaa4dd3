"""One process, FSDP2, hybrid sharding, tensor parallelism and ZeRO train the same model."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.engine.layouts import LAYOUTS, STEPS, Fleet, Layout, differences, table
from tests.support import metrics

SHARDED = {name: layout for name, layout in LAYOUTS.items() if name != "one process"}

BF16 = {"loss": 2e-4, "grad_norm": 5e-3, "val_loss": 2e-4}
"""Sums in another order are rounded to other bfloat16 values. Measured over 12 steps: one process
with micro-batches of 1, 2, 4 and 8 differs by up to 4e-5 in the loss, 5e-4 in the norm and 2e-5 in
validation; the layouts by up to 8e-5, 2e-3 and 5e-5. Against fp32 it is 9e-4, 4e-2 and 8e-5."""


def fp32_bound(step: int) -> float:
    """1e-6 after the first step, 1e-5 after the last: training amplifies what differs."""
    return 1e-6 * math.pow(10, (step - 1) / (STEPS - 1))


def assert_same_training(a: Path, b: Path, bounds: Mapping[str, float] | None = None) -> None:
    """Every loss and norm agrees; `bounds` replace those of float32."""
    for step, key, difference in differences(a, b):
        bound = bounds[key] if bounds else fp32_bound(step)
        assert difference <= bound, f"{key} at step {step}: {difference:.1e} > {bound:.1e}"


@pytest.mark.parametrize("name", SHARDED)
def test_fp32(fleet: Fleet, name: str) -> None:
    assert_same_training(fleet.train(LAYOUTS[name]), fleet.train(LAYOUTS["one process"]))


@pytest.mark.parametrize("name", SHARDED)
def test_bf16(fleet: Fleet, name: str) -> None:
    ask = ("precision=bf16", "model.layers=2")
    one = fleet.train(LAYOUTS["one process"], *ask)
    assert_same_training(fleet.train(LAYOUTS[name], *ask), one, BF16)


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
    [*(("FSDP 2", [option]) for option in OPTIONS), ("tensor 2, FSDP 2", OPTIONS)],
)
def test_options_change_no_bit(fleet: Fleet, name: str, options: list[str]) -> None:
    """They move values or compute them again, and every sum keeps its order."""
    plain = fleet.train(LAYOUTS[name], "model.layers=2")
    other = fleet.train(LAYOUTS[name], "model.layers=2", *(f"engine.{o}" for o in options))
    assert metrics(other) == metrics(plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FSDP 2", "tensor 2"])
def test_compiled(fleet: Fleet, name: str) -> None:
    plain = fleet.train(LAYOUTS[name], "model.layers=2")
    compiled = fleet.train(LAYOUTS[name], "model.layers=2", "engine.compile=true")
    assert_same_training(compiled, plain)
