"""ZeRO's closed forms against two ranks of DeepSpeed."""

from typing import Any

import pytest

from llm_pretrain.estimate.zero import sizes_of, zero_flows, zero_memory
from llm_pretrain.model.flops import parameter_count
from tests.estimate.planned import Case, measured

STAGES = (1, 2, 3)
LONG = ("model.layers=6", "data.sequence_length=512")
BUCKET_BYTES = 200_000_000
CASES = {
    stage: Case(2, 2, ("engine=deepspeed", f"engine.zero_stage={stage}", *LONG)) for stage in STAGES
}
"""Sequences long enough for activations to matter beside the buckets."""


@pytest.fixture(scope="module")
def real() -> dict[int, Any]:
    """What rank 0 measures at each stage."""
    results = measured(("gloo", case) for case in CASES.values())
    return {stage: ranks[0] for stage, ranks in zip(CASES, results, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_state_between_updates(stage: int, real: dict[int, Any]) -> None:
    case = CASES[stage]
    held = zero_memory(case.trace(), case.config, case.layout, case.passes).held
    # Gradients are dropped after an update, but stage 3 keeps its buffers for the next one.
    kept = held["parameters"] + held["moments"]
    if stage == 3:
        kept += held["gradients"] + BUCKET_BYTES
    assert kept == pytest.approx(real[stage]["held"], rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_peak(stage: int, real: dict[int, Any]) -> None:
    case = CASES[stage]
    held = zero_memory(case.trace(), case.config, case.layout, case.passes).held
    assert sum(held.values()) == pytest.approx(real[stage]["held"] + real[stage]["peak"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_volumes(stage: int, real: dict[int, Any]) -> None:
    case = CASES[stage]
    whole = 4 * parameter_count(case.config.model)
    sent: dict[str, float] = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0}
    for kind, caller, _, size in real[stage]["exchanges"]:
        if caller == "fsdp":
            # Inputs: of a gather this rank's part, of a reduction all.
            sent[kind] += size if kind == "all-gather" else size / 2
        elif caller == "gloo" and stage < 3:
            sent[kind] += 2 * size / 2
    flows = zero_flows(case.trace(), case.config, case.layout, case.passes)
    planned = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0}
    for flow in flows:
        planned[next(kind for kind in planned if kind in flow.purpose.name)] += flow.bytes
    if stage == 3:
        # What is still there after the forward pass is not gathered again.
        live = sizes_of(case.trace(), case.config, 2).live
        assert planned["all-gather"] - case.passes * live / 2 <= sent["all-gather"]
        assert sent["all-gather"] <= planned["all-gather"] * 1.001
        assert sent["reduce-scatter"] == pytest.approx(planned["reduce-scatter"], rel=1e-3)
        assert planned["reduce-scatter"] == case.passes * whole / 2
    else:
        assert sent == pytest.approx(planned, rel=1e-3)
