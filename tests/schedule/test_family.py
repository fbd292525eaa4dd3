"""Every schedule of the family: the authors' numbers, torch's own, formulas, and how they join."""

import itertools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.config.compose import build, compose
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schedule import ScheduleConfig
from llm_pretrain.config.schema import Segment, TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import Schedule, schedule_of
from llm_pretrain.schedule.shapes import FALLS

REFERENCE = json.loads((Path(__file__).parent / "schedules.json").read_text())
COMMON = ["schedule.total=1000 steps", "schedule.warmup=50 steps"]
NAMES = {"sqrt": "1-sqrt", "exp": "exponential", "miror_cosine": "mirror-cosine"}


def schedule(*overrides: str) -> Schedule:
    """Of a run with a peak rate of 1, so that rates are multipliers."""
    return schedule_of(compose(["optimizer.lr=1", *COMMON, *overrides]))


def of_reference(values: list[float], ours: Schedule) -> None:
    points = [point for point in REFERENCE["points"] if point <= ours.total][: len(values)]
    found = [ours.multiplier(point) for point in points]
    assert found == pytest.approx(values[: len(points)], abs=1e-12)


@pytest.mark.parametrize("name", REFERENCE["wsd"])
def test_the_authors_cooldowns(name: str) -> None:
    shape, _, floor = name.rpartition("_final")
    cooldown = f"{{length: 20%, shape: {NAMES.get(shape, shape)}, floor: {floor}}}"
    of_reference(REFERENCE["wsd"][name], schedule(f"schedule.cooldown={cooldown}"))


def test_the_authors_cosine_with_a_constant_end() -> None:
    cooldown = f"{{length: rest, shape: cosine, floor: 0.1, hold: {REFERENCE['cos_inf']['n_inf']}"
    ours = schedule(f"schedule.cooldown={cooldown} steps}}")
    of_reference(REFERENCE["cos_inf"]["values"], ours)
    assert ours.phases[-1].kind == "hold"


@pytest.mark.parametrize(("ours", "theirs"), [("cosine", "cos"), ("linear", "linear")])
def test_onecycle(ours: str, theirs: str) -> None:
    found = schedule(
        "schedule=onecycle", *COMMON, f"schedule.cooldown.shape={ours}",
        f"schedule.warmup_shape={ours}",
    )  # fmt: skip
    of_reference(REFERENCE["onecycle"][theirs][:-1], found)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=1000, pct_start=0.05, anneal_strategy=theirs,  # type: ignore[arg-type]
        cycle_momentum=False, div_factor=100, final_div_factor=0.1,
    )  # fmt: skip
    rates = []
    for _ in range(1000):
        rates.append(scheduler.get_last_lr()[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(rates) < 1000:
                scheduler.step()
    assert found.rates() == pytest.approx(rates, abs=1e-12)


def test_powers_are_the_shapes_that_have_names() -> None:
    for exponent, shape in ((0.5, "1-sqrt"), (1, "linear"), (2, "square")):
        power = f"{{length: 20%, shape: power, exponent: {exponent}}}"
        named = schedule(f"schedule.cooldown={{length: 20%, shape: {shape}}}")
        assert schedule(f"schedule.cooldown={power}").rates() == pytest.approx(
            named.rates(), abs=1e-15
        )
    cubic = schedule("schedule.cooldown={length: 100 steps, shape: power, exponent: 3}")
    assert cubic.multiplier(950) == pytest.approx(1 - 0.125)


def test_half_life() -> None:
    ours = schedule("schedule.cooldown={length: 20%, shape: half-life, half_life: 50 steps}")
    for step, multiplier in {800: 1.0, 850: 0.5, 875: 0.5**1.5, 900: 0.25, 1000: 1 / 16}.items():
        assert ours.multiplier(step) == pytest.approx(multiplier, rel=1e-14)


def test_inverse_square_root() -> None:
    plain = schedule("schedule.main=inverse-sqrt", "schedule.warmup=0 steps")
    expected = [1 / math.sqrt(t) for t in range(1, 1001)]
    assert plain.rates() == pytest.approx(expected, rel=1e-14)
    # With W steps of warmup it is the usual sqrt(W / t) for t > W.
    warm = schedule("schedule.main=inverse-sqrt")
    assert [warm.multiplier(t) for t in (50, 200, 450)] == pytest.approx([1, 1 / 2, 1 / 3])
    cooled = schedule("schedule=inverse_sqrt", *COMMON)
    assert cooled.multiplier(800) == pytest.approx(1 / 4)
    assert cooled.multiplier(900) == pytest.approx(1 / 8)


def test_two_stages() -> None:
    first, second = "{at: 400 steps, factor: 0.5, ramp: 100 steps}", "{at: 600 steps, factor: 0.2}"
    stages = f"schedule.stages=[{first}, {second}]"
    ours = schedule(stages, "schedule.cooldown={length: 200 steps, shape: linear}")
    golden = {399: 1, 400: 1, 450: 0.75, 499: 0.505, 500: 0.5, 599: 0.5, 600: 0.2, 800: 0.2}
    for step, multiplier in {**golden, 900: 0.1, 999: 0.001}.items():
        assert ours.multiplier(step) == pytest.approx(multiplier), step


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_schedule.py").write_text(
        "def saw(step):\n    return 0.5 + (step % 100) / 200\n"
        "def bad(step):\n    return -1 if step > 500 else 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("schedule.main=function", "schedule.function=my_schedule:saw")
    ours = schedule(*own, "schedule.cooldown={length: 20%, shape: linear}")
    assert ours.multiplier(25) == pytest.approx((0.01 + 0.99 / 2) * 0.75)
    assert [ours.multiplier(s) for s in (50, 799, 800, 900)] == pytest.approx(
        [0.75, 0.995, 0.5, 0.25]
    )
    assert ours.rates() == pytest.approx([ours.lr(s) for s in range(1000)])
    bad = schedule("schedule.main=function", "schedule.function=my_schedule:bad")
    with pytest.raises(UserError, match=r"my_schedule:bad' gives -1.0 for step 600"):
        bad.multiplier(600)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["schedule.cooldown={length: 20%, shape: power}"], "cooldown.exponent: missing; power"),
        (["schedule.cooldown={length: 20%, exponent: 2}"], "exponent: '2.0' is for shape=power"),
        (["schedule.cooldown={length: 20%, shape: half-life}"], "half_life: missing"),
        (["schedule.cooldown={length: 20%, shape: half-lif}"], "did you mean 'half-life'"),
        (["schedule.cooldown.hold=5 steps"], "hold: '5 steps' after no cooldown"),
        (["schedule.main=function"], "a function belong together"),
        (["schedule.main=function", "schedule.function=a:f"], "'a:f' cannot be imported"),
        (["schedule.timescale=5 steps"], "is for schedule.main=inverse-sqrt"),
        (["schedule.rewarmup=5 steps"], "is for branches"),
        (["schedule.stages=[{at: 5 steps, factor: 0.5}]"], "must lie between 50 and 1000"),
        (["schedule.stages=[{at: 990 steps, factor: 0.5, ramp: 20 steps}]"], "step 990 to 1010"),
        (
            ["schedule.stages=[{at: 500 steps, factor: .5}, {at: 400 steps, factor: .2}]"],
            "schedule.stages.1",
        ),
        (
            ["schedule.cooldown={length: 900 steps, hold: 100 steps}"],
            "900 steps and 100 of cooldown.hold",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        schedule(*overrides)
    assert words in str(error.value)


cooldowns = st.builds(
    lambda shape, length, hold: {
        "length": f"{length} steps",
        "shape": shape,
        "hold": f"{hold if length else 0} steps",
        **({"exponent": 0.7} if shape == "power" else {}),
        **({"half_life": "7 steps"} if shape == "half-life" else {}),
    },
    st.sampled_from([*FALLS, "power", "half-life"]),
    st.integers(0, 50),
    st.integers(0, 10),
)
drops = st.builds(
    lambda at, factor, ramp: [{"at": f"{at} steps", "factor": factor, "ramp": f"{ramp} steps"}],
    st.integers(40, 45),
    st.floats(0.1, 1),
    st.integers(0, 4),
)
mains = st.one_of(
    st.just({"main": "constant"}),
    st.just({"main": "inverse-sqrt"}),
    drops.map(lambda stages: {"stages": stages}),
)
schedules = st.builds(
    lambda warmup, main, cooldown, inclusive: {
        "total": "110 steps",
        "warmup": f"{warmup} steps",
        "cooldown": cooldown,
        "inclusive": inclusive,
        **main,
    },
    st.integers(0, 40),
    mains,
    cooldowns,
    st.booleans(),
)


@given(schedules)
def test_phases_join_and_stay_between_zero_and_one(asked: dict[str, Any]) -> None:
    config = TrainConfig(schedule=build(ScheduleConfig, asked), optimizer=OptimizerConfig(lr=1.0))
    ours = schedule_of(config)
    assert ours.phases[0].start == 0
    assert [phase.start for phase in ours.phases[1:]] == list(ours.cuts[:-1])
    assert ours.total == 110
    rates = ours.rates()
    assert rates.shape == (110,)
    assert ((rates >= 0) & (rates <= 1)).all()
    assert rates == pytest.approx([ours.lr(step) for step in range(110)], abs=1e-15)
    at_once = [int(s["at"].split()[0]) for s in asked.get("stages", []) if s["ramp"] == "0 steps"]
    # One update of an inclusive cooldown is the floor at once.
    drop = asked["inclusive"] and asked["cooldown"]["length"] == "1 steps"
    for before, after in itertools.pairwise(ours.phases):
        if after.start not in at_once and not (drop and after.kind == "hold"):
            assert before.multiplier(after.start) == pytest.approx(after.multiplier(after.start))


def branched(until: int, lr: float, own: dict[str, Any], **trunk: Any) -> Schedule:
    """The schedule of a branch at step `until` of a trunk with a peak rate of 1."""
    config = TrainConfig(schedule=build(ScheduleConfig, {"total": "1000 steps", **trunk}))
    past = Segment("trunk", until, 1.0, config.schedule, config.data)
    asked = build(ScheduleConfig, {"total": "1000 steps", **trunk, **own})
    return schedule_of(
        replace(config, schedule=asked, past=[past], optimizer=OptimizerConfig(lr=lr))
    )


STAGES = [{"at": "400 steps", "factor": 0.5, "ramp": "100 steps"}]


@pytest.mark.parametrize("until", [100, 399, 400, 401, 450, 499, 500, 700])
@pytest.mark.parametrize("trunk", [{"stages": STAGES}, {"main": "inverse-sqrt"}])
def test_a_branch_that_changes_nothing_has_the_trunks_rates(
    until: int, trunk: dict[str, Any]
) -> None:
    whole = schedule_of(
        TrainConfig(
            schedule=build(ScheduleConfig, {"total": "1000 steps", **trunk}),
            optimizer=OptimizerConfig(lr=1.0),
        )
    )
    branch = branched(until, 1.0, {}, **trunk)
    assert branch == whole
    assert whole.prolongs(branched(until, 1.0, {"total": "900 steps"}, **trunk))


def test_a_branch_that_cools_down_before_a_drop_has_none() -> None:
    own = {"total": "375 steps", "cooldown": {"length": "75 steps", "shape": "linear"}}
    ours = branched(300, 1.0, own, stages=STAGES)
    assert [phase.kind for phase in ours.phases] == ["constant", "cooldown"]
    assert ours.lr(350) == pytest.approx(1 - 50 / 75)


def test_a_rise_from_the_end_of_a_cooldown() -> None:
    trunk = {"cooldown": {"length": "20%", "shape": "linear"}}
    own = {"total": "2000 steps", "rewarmup": "100 steps", "cooldown": {"length": "0 steps"}}
    ours = branched(1000, 0.4, own, **trunk)
    for step, rate in {999: 0.005, 1000: 0, 1050: 0.2, 1099: 0.396, 1100: 0.4, 1999: 0.4}.items():
        assert ours.lr(step) == pytest.approx(rate, abs=1e-15), step
    # From the middle of a cooldown the rate rises from where it was.
    early = branched(900, 0.4, own, **trunk)
    for step, rate in {899: 0.505, 900: 0.5, 950: 0.45, 1000: 0.4}.items():
        assert early.lr(step) == pytest.approx(rate), step
