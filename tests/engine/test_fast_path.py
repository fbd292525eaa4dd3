"""What makes training faster or smaller leaves the numbers as they are, on one rank and on two."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.engine.offload import ActivationOffload
from llm_pretrain.runs import Run
from tests.engine.layouts import Fleet, Layout, differences, fsdp, zero
from tests.engine.zero import alone
from tests.support import metrics

BOUND = 1e-5
"""Relative, of every loss and norm over twenty steps in float32. Measured: 2e-7."""
CURVE = (
    *("schedule.total=20 steps", "data.sequence_length=320", "model.ffn=512"),
    *("optimizer.lr=1e-3", "eval.every=10 steps", "checkpoint.every=0 steps"),
)
"""With activations of more than a MiB on each rank, so that some are sent to host memory."""
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


@pytest.mark.parametrize("passes", [1, 2], ids=["one process", "FSDP 2"])
def test_activations_are_large_enough_to_be_sent(fleet: Fleet, passes: int) -> None:
    """In the two runs that ask for it: by the config of the first, with the rows of either."""
    run = Run.open(curve(fleet, ONE, "engine.offload_activations=true"))
    engine = FsdpEngine(run.config, alone())
    rows = run.config.data.micro_batch // passes
    tokens = torch.zeros(rows, run.config.data.sequence_length + 1, dtype=torch.int64)
    engine.forward_backward(tokens, weight=1.0, last=True)
    around = engine.model.around
    assert isinstance(around, ActivationOffload)
    assert [len(kept.host) > 1 for kept in around._blocks] == [True]


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
def test_compiled_with_everything(fleet: Fleet) -> None:
    """Compiled blocks alone are in test_equivalence.py."""
    ask = ("engine.compile=true", "engine.recompute=selective", "engine.loss=chunked")
    assert_same_curve(curve(fleet, TWO, DOCUMENTS, *ask), curve(fleet, ONE, DOCUMENTS))


def test_selective_recomputation_at_zeros_stage_3(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail in the first backward pass."""
    place = tmp_path / "run"
    ask = ("engine=deepspeed", "engine.zero_stage=3", "engine.recompute=selective")
    assert train(place, *ask) == 2
    assert "engine.recompute: at zero_stage=3 " in capsys.readouterr().err
    assert not place.exists()
