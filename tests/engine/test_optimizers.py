"""Every update rule under every layout of FSDP2 trains the same, and goes on where it stopped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.fsdp import FsdpEngine
from tests.engine.layouts import Fleet, Layout, differences, fsdp
from tests.engine.zero import alone
from tests.support import CONF, metrics, record, tensors

Cli = Callable[..., int]
Train = Callable[..., int]

RULES: Mapping[str, tuple[str, ...]] = {
    "AdamC": ("optimizer=adamw", "optimizer.corrected_decay=true"),
    "schedule-free": ("optimizer=schedule_free",),
    "schedule-free+": (
        *("optimizer=schedule_free_plus", "optimizer.weight_decay=20", "optimizer.polyak_beta=0.9"),
        *("optimizer.anneal=10 steps", "optimizer.lr=0.2", "optimizer.grad_clip=0.5"),
    ),
    "AdEMAMix": ("optimizer=ademamix", "optimizer.slow_warmup=20 steps"),
    "Muon": ("optimizer=muon",),
    "projected": ("optimizer=adamw", "optimizer.project=2 steps", "model.qk_norm=true"),
    "schedule-free, projected": (
        *("optimizer=schedule_free", "optimizer.project=1 steps", "optimizer.projected=blocks"),
        "optimizer.scale_decay=0.1",
    ),
}
ONE = fsdp(1)
CURVE = ("schedule.total=20 steps", "eval.every=10 steps", "checkpoint.every=0 steps")
LAYOUTS = {
    "FSDP 2": fsdp(2),
    "copies 2": fsdp(2, "shard=1"),
    "tensor 2": fsdp(2, "tensor=2", parts=2),
    "context 2": fsdp(2, "context=2", parts=2),
    "HSDP 2x2": fsdp(4, "replicate=2", "shard=2"),
    "tensor 2, FSDP 2": fsdp(4, "tensor=2", parts=2),
}
BOUND = 1e-6
"""Relative, of each loss over twenty steps. Measured over twelve: 2e-7."""
MUON_BOUND = 2e-4
"""torch's Muon makes updates orthogonal in bfloat16, where a sum in another order shows."""


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_equals_one_process(fleet: Fleet, rule: str) -> None:
    assert_same_curve(fleet, rule, LAYOUTS["tensor 2, FSDP 2"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["FSDP 2", "copies 2", "tensor 2", "context 2", "HSDP 2x2"])
def test_sums_over_all_ranks_count_each_element_once(fleet: Fleet, layout: str) -> None:
    assert_same_curve(fleet, "schedule-free+", LAYOUTS[layout])


def assert_same_curve(fleet: Fleet, rule: str, layout: Layout) -> None:
    run, plain = (fleet.train(of, *CURVE, *RULES[rule], experiment="tiny") for of in (layout, ONE))
    bound = MUON_BOUND if rule == "Muon" else BOUND
    for step, key, difference in differences(run, plain):
        if key != "grad_norm":
            assert difference <= bound, f"{key} at step {step}: {difference:.1e}"


@pytest.fixture(autouse=True)
def _corpus(tiny_corpus: Path) -> None:
    """The experiment names it."""


def configured(*overrides: str) -> TrainConfig:
    return compose(["experiment=tiny", "data.micro_batch=4", *overrides], CONF)


def batch(step: int, config: TrainConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    size = (8, config.data.sequence_length + 1)
    return torch.randint(config.model.vocab_size, size, generator=generator)


def go_on(engine: FsdpEngine, config: TrainConfig, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        parts = torch.split(batch(step, config), 4)
        loss = sum(
            engine.forward_backward(part, weight=1 / 2, last=part is parts[-1]).item()
            for part in parts
        )
        losses += [loss, engine.step(config.optimizer.lr).item()]
    return losses


def saved(state: Any) -> Any:
    """A copy, as a checkpoint makes it."""
    if isinstance(state, dict):
        return {name: saved(value) for name, value in state.items()}
    return (state() if callable(state) else state).clone()


def fill(state: Any, values: Any) -> None:
    for name, value in state.items():
        if isinstance(value, dict):
            fill(value, values[name])
        else:
            value.copy_(values[name])


def engine_of(config: TrainConfig) -> FsdpEngine:
    engine = build_engine(config, alone())
    assert isinstance(engine, FsdpEngine)
    return engine


@pytest.mark.parametrize("rule", RULES)
def test_goes_on_to_the_last_bit(rule: str) -> None:
    config = configured(*RULES[rule])
    whole, first = engine_of(config), engine_of(config)
    expected = go_on(whole, config, 0, 6)
    assert go_on(first, config, 0, 3) == expected[:6]
    values = saved(first.state())
    # Other values than those it is to take over.
    second = engine_of(config)
    go_on(second, config, 10, 12)
    assert second.load(lambda state: fill(state, values))
    assert go_on(second, config, 3, 6) == expected[6:]


@pytest.mark.parametrize("rule", ["schedule-free", "schedule-free+", "schedule-free, projected"])
def test_evaluates_and_saves_the_average_but_trains_elsewhere(rule: str) -> None:
    config = configured(*RULES[rule])
    engine = engine_of(config)
    # For longer than the warmup, after which schedule-free+ begins to average.
    go_on(engine, config, 0, 8)
    tokens = batch(99, config)[:4]
    before = saved(engine.state())
    losses = engine.evaluate(tokens)
    after = saved(engine.state())
    for name, entry in before["optimizer"].items():
        assert torch.equal(entry["point"], after["optimizer"][name]["point"])
    # What is saved as the model is what was evaluated, and not the point.
    assert any(
        not torch.equal(value, before["optimizer"][name]["point"])
        for name, value in before["model"].items()
    )
    plain = engine_of(configured())
    assert not plain.load(
        lambda state: fill(state, before), {f"model.{n}" for n in before["model"]}
    )
    torch.testing.assert_close(plain.evaluate(tokens), losses, rtol=0, atol=0)


def test_a_branch_with_another_rule_begins_with_a_fresh_state(
    train: Train, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = tmp_path / "trunk"
    assert train(trunk) == 0
    ask = ("at=[20 steps]", "cooldown.length=0 steps", "schedule.total=30 steps")
    code = cli("branch", "apply", f"parent={trunk}", *ask, "optimizer=schedule_free")
    shown = capsys.readouterr().err
    assert code == 0, shown
    (branch,) = (p for p in tmp_path.iterdir() if p.name.startswith("trunk.20-"))
    assert "schedule_free: starts anew" in shown
    assert record(branch)["state"] == "finished"
    # It has averaged since the branch point only.
    state = tensors(branch, record(branch)["step"])
    assert "z" in next(iter(state["optimizer"].values()))
    assert "loss" in metrics(branch)[0]
