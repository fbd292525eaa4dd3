"""ZeRO's closed forms against DeepSpeed: two ranks on gloo, and rank 0 among ranks that are not."""

from itertools import product
from typing import Any

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine import zero_config
from llm_pretrain.estimate.plan import estimate
from llm_pretrain.estimate.zero import sizes_of, zero_flows, zero_memory
from llm_pretrain.model.flops import parameter_count
from tests.estimate.planned import AVERAGES, Case, measured

STAGES = (1, 2, 3)
BUCKET = 100_000
"""Small enough that activations and gradients matter beside the buckets."""
MEETING = {
    stage: Case(
        2,
        2,
        ("engine=deepspeed", f"engine.zero_stage={stage}", "model.layers=6", *AVERAGES),
        BUCKET,
    )
    for stage in STAGES
}
_ALONE = [
    *(
        (f"engine.zero_stage={stage}", f"precision={precision}", f"engine.recompute={recompute}")
        for stage, precision, recompute in product(STAGES, ("fp32", "bf16"), ("none", "block"))
    ),
    *(
        (f"engine.zero_stage={stage}", f"engine.offload={offload}", "engine.recompute=block")
        for stage, offload in ((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all"))
    ),
    ("engine.zero_stage=1", "optimizer=muon"),
    ("engine.zero_stage=2", "optimizer=schedule_free", "schedule=constant"),
    ("engine.zero_stage=3", "optimizer=schedule_free_plus", "schedule=constant"),
]
ALONE = {
    " ".join(one): Case(
        2, 2, ("engine=deepspeed", "model.layers=6", "data.sequence_length=256", *one), BUCKET
    )
    for one in _ALONE
}


@pytest.fixture(scope="module")
def real() -> dict[Any, Any]:
    """What rank 0 measures in each case."""
    cases = [("gloo", case) for case in MEETING.values()]
    cases += [("fake", case) for case in ALONE.values()]
    results = measured(cases)
    return {key: ranks[0] for key, ranks in zip([*MEETING, *ALONE], results, strict=True)}


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that are measured."""
    monkeypatch.setattr(zero_config, "BUCKET", BUCKET)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_state_between_updates(stage: int, real: dict[Any, Any]) -> None:
    case = MEETING[stage]
    held = zero_memory(case.trace(), case.config, case.layout, case.passes).held
    kept = held["parameters"] + held["moments"]
    if stage == 3:
        # Gradients are dropped after an update, but stage 3 keeps its buffers for the next one.
        kept += sizes_of(case.trace(), case.config, 2).part + 4 * BUCKET
    assert kept == pytest.approx(real[stage]["held"], rel=2e-3)
    assert held["averages"] == 3 * 4 * parameter_count(case.config.model) / 2
    # ZeRO pads its parts.
    assert real[stage]["averages"] == pytest.approx(held["averages"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_peak(name: str, real: dict[Any, Any]) -> None:
    case = ALONE[name]
    memory = zero_memory(case.trace(), case.config, case.layout, case.passes)
    # Where a CPU computes, what is offloaded is in the same memory as the rest. Stage 3 is planned
    # with as many gathered parameters as there may be, stage 2 for the last rank, whose gradients
    # come first in a backward pass, while rank 0 is measured.
    planned = sum(memory.held.values()) + sum(memory.offloaded.values())
    assert planned == pytest.approx(real[name]["held"] + real[name]["peak"], rel=0.035)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_volumes(stage: int, real: dict[Any, Any]) -> None:
    case = MEETING[stage]
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


@pytest.mark.parametrize(("stage", "sizes"), [(1, 2 + 1), (2, 2 * 2 + 1)])
def test_stages_1_and_2_wait_for_every_exchange(stage: int, sizes: int) -> None:
    """An all-reduce sends a ring's share of all gradients twice, the gather of parameters once."""
    config = plan(stage, between_nodes=20)
    speed = estimate(config).speed
    assert speed is not None
    ring = 4 * parameter_count(config.model) * 7 / 8
    # The ring leaves each node once, through the adapters of all its four devices.
    assert speed.exposed == pytest.approx(sizes * ring / (4 * 20e9))
    assert speed.waiting == 0
    assert speed.network == speed.exposed


def test_stage_3_hides_exchanges_behind_passes_but_not_behind_the_update() -> None:
    fast, slow = (estimate(plan(3, between_nodes=rate)).speed for rate in (1e6, 0.1))
    assert fast is not None
    assert slow is not None
    assert fast.exposed == fast.waiting == slow.exposed == 0
    count = parameter_count(plan(3, between_nodes=1).model)
    # Two passes, each of which gathers forwards, gathers backwards and reduces.
    exchanged = 2 * 3 * (4 * count * 7 / 8) / (4 * 0.1e9)
    # The norm reads a gradient, clipping reads and writes it, AdamW reads four and writes three.
    update = (4 + 8 + 28) * count / 8 / 4e12
    assert slow.step == pytest.approx(exchanged + update, abs=update / 100)
    assert slow.network == pytest.approx(exchanged)


def plan(stage: int, between_nodes: float) -> TrainConfig:
    """Two passes of an update on two nodes of four devices."""
    return compose(
        [
            *("model=llama_1b", "engine=deepspeed", f"engine.zero_stage={stage}"),
            *("cluster.nodes=2", "data.global_batch=64", "cluster.hardware.inside_node=1e7"),
            *(f"cluster.hardware.between_nodes={between_nodes}", "data.sequence_length=512"),
        ],
        name="estimate",
    )
