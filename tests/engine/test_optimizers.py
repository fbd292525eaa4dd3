"""Every update rule under every layout trains the same, and goes on where it stopped."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_pretrain.config.compose import override
from llm_pretrain.config.layout import Layout as Ranks
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.base import saved_names
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.model.transformer import Transformer
from tests.engine.layouts import Fleet, fsdp, zero
from tests.engine.rules import (
    MIDDLE,
    RULES,
    Course,
    all_resumed_too,
    configured,
    goes_on,
    in_small_buckets,
    resumed_too,
)
from tests.engine.rules import plain as plain_course
from tests.engine.zero import alone
from tests.ranks.functions import Crew, run
from tests.support import metrics, record, tensors

Cli = Callable[..., int]
Train = Callable[..., int]

SUMS = ("schedule-free+", "AdamW, projected", "Muon")
"""Rules that add something up over the ranks, or need whole matrices."""
LAYOUTS = {
    "FSDP 2": (Ranks(shard=2), tuple(RULES)),
    "copies 2": (Ranks(replicate=2), SUMS),
    "tensor 2": (Ranks(tensor=2), SUMS),
    "context 2": (Ranks(context=2), SUMS),
    "HSDP 2x2": (Ranks(replicate=2, shard=2), ("schedule-free+",)),
    "tensor 2, FSDP 2": (Ranks(shard=2, tensor=2), ("schedule-free+", "Muon")),
}
BOUND = 1e-6
"""Relative, of each loss over twenty steps. Measured: 3e-7."""
MUON_BOUND = 2e-5
"""Muon makes updates orthogonal in bfloat16, where a sum in another order shows. Measured: 2e-6."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fsdp(layout: str, tmp_path: Path) -> None:
    """Equal to one process, and resumed to the last bit."""
    ranks, rules = LAYOUTS[layout]
    engine = [f"engine.{name}={size}" for name, size in asdict(ranks).items()]
    configs = [configured(*RULES[rule], *engine) for rule in rules]
    for courses in run(tmp_path, ranks, all_resumed_too, configs):
        for rule, (whole, resumed) in zip(rules, courses, strict=True):
            assert_same_course(rule, whole, plain(rule))
            assert_goes_on_to_the_last_bit(whole, resumed)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Two ranks."""
    two = Crew(Ranks(shard=2), tmp_path_factory.mktemp("crew"))
    yield two
    two.close()


@functools.cache
def plain(rule: str) -> Course:
    """The run of one process."""
    return plain_course(configured(*RULES[rule]))


def zeros(rule: str, stage: int, *more: str) -> TrainConfig:
    """The same run under DeepSpeed."""
    return configured(*RULES[rule], "engine=deepspeed", f"engine.zero_stage={stage}", *more)


def assert_same_course(rule: str, ours: Course, theirs: Course) -> None:
    bound = MUON_BOUND if rule == "Muon" else BOUND
    assert ours.losses == pytest.approx(theirs.losses, rel=bound, abs=0), rule
    assert max(theirs.losses) > 1.05 * min(theirs.losses), "it learns"
    torch.testing.assert_close(ours.evaluated, theirs.evaluated, rtol=bound * 10, atol=0)
    # Names and order too, by which a checkpoint goes from one engine to another.
    assert list(ours.final) == list(theirs.final)
    for mine, other in zip(ours.rates, theirs.rates, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)


def assert_goes_on_to_the_last_bit(whole: Course, resumed: Course) -> None:
    assert resumed.losses == whole.losses[MIDDLE:]
    assert torch.equal(resumed.evaluated, whole.evaluated)
    assert [n for n, v in whole.final.items() if not torch.equal(v, resumed.final[n])] == []


def assert_zero(rule: str, ranks: list[tuple[Course, Course]]) -> None:
    for whole, resumed in ranks:
        assert_same_course(rule, whole, plain(rule))
        assert_goes_on_to_the_last_bit(whole, resumed)


def test_zero(crew: Crew) -> None:
    """Sums over the whole model from pieces of it, two points of which one is evaluated."""
    assert_zero("schedule-free+", crew.run(resumed_too, zeros("schedule-free+", 2)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_with_every_rule(crew: Crew, stage: int) -> None:
    for rule in RULES if stage > 1 else SUMS:
        assert_zero(rule, crew.run(resumed_too, zeros(rule, stage)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offload", "rules"),
    [("none", ("schedule-free+", "AdEMAMix")), ("all", ("AdamW, projected", "Muon"))],
)
def test_zero_3_in_parts(crew: Crew, offload: str, rules: tuple[str, ...]) -> None:
    """Rules that need all gradients first, and one that updates as they come."""
    for rule in rules:
        config = zeros(rule, 3, f"engine.offload={offload}")
        assert_zero(rule, crew.run(in_small_buckets, config))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_takes_over_the_state_of_one_process_and_gives_it_back(crew: Crew, stage: int) -> None:
    rule = "schedule-free+"
    expected = plain(rule).losses[MIDDLE:]
    for theirs in crew.run(goes_on, zeros(rule, stage), plain(rule).middle):
        assert theirs.losses == pytest.approx(expected, rel=BOUND, abs=0)
    (whole, _), *_ = crew.run(resumed_too, zeros(rule, stage))
    back = goes_on(alone(), configured(*RULES[rule]), whole.middle)
    assert back.losses == pytest.approx(expected, rel=BOUND, abs=0)


@pytest.mark.slow
def test_a_run_goes_from_fsdp_to_zero_and_back(fleet: Fleet) -> None:
    """With checkpoints on disk."""
    rule, to = RULES["schedule-free+"], "schedule.total={} steps"
    ask = ("schedule.total=20 steps", "eval.every=10 steps", "checkpoint.every=0 steps", *rule)
    one = fleet.train(fsdp(1), *ask, experiment="tiny")
    run = fleet.train(fsdp(2), *ask, to.format(8), experiment="tiny")
    for layout, total in ((zero(2), 14), (fsdp(2), 20)):
        fleet.zygote(layout).train(2, f"resume={run}", *layout.engine, to.format(total))
    rows = [{r["step"]: r["loss"] for r in metrics(path) if "loss" in r} for path in (run, one)]
    assert rows[0].keys() >= rows[1].keys()
    for step, loss in rows[1].items():
        assert rows[0][step] == pytest.approx(loss, rel=BOUND), step


@pytest.fixture(autouse=True)
def _corpus(tiny_corpus: Path) -> None:
    """The experiment names it."""


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


def test_the_size_of_steps_is_in_the_metrics(train: Train, tmp_path: Path) -> None:
    """Under projections the rate over the norms of the initial values; beside it Polyak's step."""
    ask = ("model.qk_norm=true", "optimizer.project=1 steps", "schedule.total=6 steps")
    assert train(tmp_path / "adamw", *ask) == 0
    assert train(tmp_path / "plus", *ask, *RULES["schedule-free+"]) == 0
    assert train(tmp_path / "plain", "schedule.total=6 steps") == 0
    config = configured("model.qk_norm=true")
    values = dict(Transformer(config.model).initial_values(config.run.seed))
    for kind in ("q", "k"):
        norms = [v.norm().item() for n, v in values.items() if n.endswith(f".{kind}.weight")]
        inverse = sum(1 / norm for norm in norms) / len(norms)
        for name, rate in (("adamw", "lr"), ("plus", "polyak_step")):
            rows = [row for row in metrics(tmp_path / name) if "loss" in row]
            assert len(rows) > 1
            for row in rows:
                found = row[f"lr_effective_{kind}"]
                assert found == pytest.approx(row[rate] * inverse, rel=1e-6)
    sizes = {"polyak_step", "lr_effective_q", "lr_effective_k"}
    assert not any(sizes & row.keys() for row in metrics(tmp_path / "plain"))
    assert not any("polyak_step" in row for row in metrics(tmp_path / "adamw"))


@pytest.mark.parametrize("rule", ["AdEMAMix", "schedule-free+"])
def test_a_projection_that_begins_in_a_branch_leaves_the_rule_as_it_is(rule: str) -> None:
    """The norms to hold are those of the branch point; moments and counts go on."""
    config = configured(*RULES[rule], "model.qk_norm=true")
    trunk = engine_of(config)
    go_on(trunk, config, 0, 4)
    values = saved(trunk.state())
    branch = engine_of(override(config, ["optimizer.project=1 steps"]))
    go_on(branch, config, 10, 13)
    assert branch.load(lambda state: fill(state, values), saved_names(values), step=4)
    now = saved(branch.state())
    for name, value in now["optimizer"].items():
        norm = value.pop("norm", None)
        assert (norm is not None) == name.endswith((".q.weight", ".k.weight"))
        point = value.get("point", now["model"][name])
        if norm is not None:
            assert norm.item() == pytest.approx(point.double().norm().item(), rel=1e-12)
        assert value.keys() == values["optimizer"][name].keys()
        assert all(torch.equal(v, values["optimizer"][name][key]) for key, v in value.items())
    assert now["rule"].pop("updates") == 0
    assert now["rule"] == values["rule"]


OTHERS = ("adamw", "schedule_free", "schedule_free_plus", "ademamix", "muon")


@pytest.mark.parametrize("trunk", ["adamw", "schedule_free_plus"])
def test_a_branch_with_another_rule_begins_with_a_fresh_state(
    trunk: str, train: Train, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its state has the names that the trunk's has."""
    ask = (f"optimizer={trunk}", "optimizer.lr=1e-2", "schedule.total=20 steps")
    assert train(tmp_path / "trunk", *ask) == 0
    more = ("at=[20 steps]", "cooldown.length=0 steps", "schedule.total=22 steps")
    for name in (other for other in OTHERS if other != trunk):
        before = set(tmp_path.iterdir())
        asked = (f"parent={tmp_path / 'trunk'}", *more, f"optimizer={name}", "optimizer.lr=1e-3")
        capsys.readouterr()
        code = cli("branch", "apply", *asked)
        shown = capsys.readouterr().err
        assert code == 0, shown
        (branch,) = set(tmp_path.iterdir()) - before
        assert f"{name}: starts anew, the parent had optimizer={trunk}" in shown
        (session,) = record(branch)["sessions"]
        assert session["optimizer_anew"] == f"the parent had optimizer={trunk}"
        assert_remembers_two_updates(name, tensors(branch, 22))


def assert_remembers_two_updates(name: str, state: dict[str, Any]) -> None:
    if "rule" in state and "k" in state["rule"]:
        assert state["rule"]["k"] == 2
    else:
        assert {s["step"].item() for s in state["optimizer"].values() if "step" in s} == {2}
    if name == "schedule_free_plus":
        # The warmup, where it would not average yet, is long over.
        assert state["rule"]["origin"] == 20
        assert any(
            not torch.equal(s["z"], state["model"][n]) for n, s in state["optimizer"].items()
        )


def test_a_cooldown_of_an_average_is_refused_before_there_is_a_branch(
    train: Train, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "trunk", *RULES["schedule-free"], "schedule.total=10 steps") == 0
    before = sorted(tmp_path.rglob("*"))
    for action in ("plan", "apply"):
        assert cli("branch", action, f"parent={tmp_path / 'trunk'}", "at=[10 steps]") == 2
        assert "cooldown.length: '20%' of a branch with optimizer=sch" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
