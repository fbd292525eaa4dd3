"""What makes training faster or smaller leaves the numbers as they are, on one rank and on two."""

from pathlib import Path

import pytest

from tests.engine.layouts import Fleet, Layout, differences, fsdp, zero
from tests.support import metrics

BOUND = 1e-5
"""Relative, of every loss and norm over twenty steps in float32. Measured: BOUND_MEASURED."""
CURVE = (
    *("schedule.total=20 steps", "data.sequence_length=544", "model.ffn=256"),
    *("eval.every=10 steps", "checkpoint.every=0 steps"),
)
"""Micro-batches of 1088 and more positions on each rank, so that the chunked loss has two chunks or
three, and activations of more than a MiB, so that some are sent to host memory."""
PLAIN = ("model.attention=flash", "engine.loss=plain")
DOCUMENTS = "model.document_mask=true"
ONE, TWO = fsdp(1), fsdp(2)
TENSOR, CONTEXT = fsdp(2, "tensor=2", parts=2), fsdp(2, "context=2", parts=2)


def curve(fleet: Fleet, layout: Layout, *overrides: str) -> Path:
    """A run of twenty steps; the plain way where `overrides` say nothing else."""
    return fleet.train(layout, *CURVE, *PLAIN, *overrides, experiment="tiny")


def assert_same_curve(run: Path, plain: Path) -> None:
    assert len([row for row in metrics(plain) if "loss" in row]) == 20
    assert len([row for row in metrics(plain) if "val_loss" in row]) == 2
    print("MAX", max((d,k,s) for s,k,d in differences(run, plain)))
    for step, key, difference in differences(run, plain):
        assert difference <= BOUND, f"{key} at step {step}: {difference:.1e}"


@pytest.mark.parametrize("option", ["model.attention=math", "engine.loss=chunked"])
def test_another_order_of_sums(fleet: Fleet, option: str) -> None:
    run, plain = curve(fleet, ONE, option), curve(fleet, ONE)
    assert_same_curve(run, plain)
    # Else the option may have done nothing.
    assert metrics(run) != metrics(plain)


@pytest.mark.parametrize(
    "option", ["recompute=selective", "recompute=block", "offload_activations=true"]
)
def test_no_bit_changes(fleet: Fleet, option: str) -> None:
    """Only when or where something is kept."""
    assert metrics(curve(fleet, ONE, f"engine.{option}")) == metrics(curve(fleet, ONE))


@pytest.mark.parametrize(
    "layout,options",
    [
        pytest.param(TWO, ["recompute=selective", "loss=chunked"], id="FSDP 2"),
        pytest.param(TWO, ["offload_activations=true"], id="FSDP 2, activations in host memory"),
        pytest.param(zero(2), ["recompute=selective", "loss=chunked"], id="ZeRO-2 2"),
        pytest.param(zero(3), ["recompute=block", "loss=chunked"], id="ZeRO-3 2"),
    ],
)
def test_on_two_ranks(fleet: Fleet, layout: Layout, options: list[str]) -> None:
    run = curve(fleet, layout, *(f"engine.{option}" for option in options))
    assert_same_curve(run, curve(fleet, ONE))


@pytest.mark.parametrize(
    "layout,options",
    [
        pytest.param(ONE, ["model.attention=math", "engine.loss=chunked"], id="one process"),
        pytest.param(CONTEXT, ["engine.loss=chunked"], id="context 2"),
        pytest.param(TENSOR, ["engine.recompute=selective"], id="tensor 2"),
    ],
)
def test_within_documents(fleet: Fleet, layout: Layout, options: list[str]) -> None:
    plain = curve(fleet, ONE, DOCUMENTS)
    assert_same_curve(curve(fleet, layout, DOCUMENTS, *options), plain)
    across = curve(fleet, ONE)
    assert max(difference for _, _, difference in differences(plain, across)) > 100 * BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout,options",
    [
        pytest.param(ONE, ["recompute=selective", "loss=chunked"], id="one process"),
        pytest.param(TWO, ["recompute=block", "loss=chunked"], id="FSDP 2"),
    ],
)
def test_compiled_blocks(fleet: Fleet, layout: Layout, options: list[str]) -> None:
    """The rest is in test_equivalence.py."""
    ask = ["engine.compile=true", *(f"engine.{option}" for option in options)]
    assert_same_curve(curve(fleet, layout, DOCUMENTS, *ask), curve(fleet, ONE, DOCUMENTS))
