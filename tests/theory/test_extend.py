"""Longer horizons: the authors' numbers, roots, and runs as they are on disk."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig, StageConfig
from llm_pretrain.config.schema import BranchSpec, TrainConfig
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.theory.bound import last_iterate
from llm_pretrain.theory.extend import Option, Trunk, Tuning, nearest, options
from llm_pretrain.theory.named import parse
from tests.theory.formulas import REFERENCE

TUNED = 4000


def trunk(name: str = "wsd", total: int = TUNED, lr: float = 1.0) -> Trunk:
    return Trunk.of(parse(name).schedule(total, lr), lr)


def by_name(found: list[Option]) -> dict[str, Option]:
    return {option.what: option for option in found}


@pytest.mark.parametrize("times", REFERENCE["extended"])
def test_the_authors_numbers(times: str) -> None:
    """Their grids are 0.025 wide for the factor, 0.028 for the cooldown; their roots are exact."""
    expected, total = REFERENCE["extended"][times], int(float(times) * TUNED)
    found = by_name(options(trunk(), total))
    assert found["as it is"].bound == pytest.approx(expected["omega_same"], rel=1e-5)
    matched = found["lower rate, matched"]
    assert matched.factor == pytest.approx(expected["rho_root"], abs=1e-5)
    assert matched.factor == pytest.approx(expected["rho_grid"], abs=0.025)
    assert matched.ratio == pytest.approx(1, abs=1e-9)
    assert matched.branch == 3200
    assert matched.bound == pytest.approx(expected["omega_adapted"], rel=2e-3)
    least = found["lower rate, least bound"]
    assert least.factor == pytest.approx(expected["rho_argmin"], abs=1e-3)
    assert least.bound <= matched.bound
    longer = found["longer cooldown, matched"]
    assert longer.cooldown / total == pytest.approx(expected["c_adapted"], abs=0.9 / 32)
    assert longer.bound == pytest.approx(expected["omega_cooldown_adapted"], rel=2e-3)
    fresh = parse("linear").terms(total).optimal_bound
    assert fresh == pytest.approx(expected["omega_linear"], rel=1e-5)


def test_the_longer_cooldown_is_the_nearest_whole_number_of_updates() -> None:
    found = by_name(options(trunk(), 8000))["longer cooldown, matched"]
    start, target = trunk(), parse("wsd").terms(TUNED).optimal_rate
    for cooldown in (found.cooldown - 1, found.cooldown + 1):
        other = last_iterate(start.extended(8000, cooldown).rates()).optimal_rate
        assert abs(found.ratio - 1) <= abs(other / target - 1)


def test_four_times_as_long_even_the_whole_run_is_too_short_a_cooldown() -> None:
    found = by_name(options(trunk(), 16_000))["longer cooldown, matched"]
    assert (found.cooldown, found.branch) == (16_000, 0)
    assert found.ratio < 1


@settings(max_examples=20)
@given(st.integers(50, 400), st.floats(1.05, 6), st.sampled_from(["wsd-20%", "wsd-10%-1-sqrt"]))
def test_phases_join_and_the_past_is_kept(total: int, times: float, name: str) -> None:
    start = trunk(name, total, lr=3e-4)
    horizon = max(total + 1, int(times * total))
    for option in options(start, horizon):
        rates = option.schedule.rates()
        assert option.schedule.total == len(rates) == horizon
        begins = [phase.start for phase in option.schedule.phases]
        assert begins == [0, *option.schedule.cuts[:-1]]
        assert rates[: option.branch].tolist() == [3e-4] * option.branch
        assert option.branch == horizon - option.cooldown or option.factor < 1
        assert option.bound == pytest.approx(
            last_iterate(rates / 3e-4).at(parse(name).terms(total).optimal_rate)
        )


def run(total: int = 1000, length: str = "0 steps", **options: Any) -> TrainConfig:
    cooldown = CooldownConfig(length=Duration.parse(length), shape="linear")
    schedule = ScheduleConfig(total=steps(total), warmup=steps(50), cooldown=cooldown, **options)
    return TrainConfig(optimizer=OptimizerConfig(lr=2e-3), schedule=schedule)


def test_a_branch_counts_from_its_trunk() -> None:
    """A run cooled down from a trunk is the same as one that was trained so from the start."""
    spec = BranchSpec(
        ends=[steps(1000)],
        cooldown=CooldownConfig(length=Duration.parse("20%"), shape="linear"),
    )
    branch = expand(Origin(run(), "id", Path("runs/default")), spec)[0].config
    one, other = (
        options(Trunk.of(schedule_of(config), 2e-3), 3000) for config in (branch, run(1000, "20%"))
    )
    assert [(o.branch, o.factor, o.bound) for o in one] == [
        (o.branch, o.factor, o.bound) for o in other
    ]
    assert one[1].schedule.describe().startswith("warmup 0-50, constant 50-800 at 0.002, constant")


def test_a_trunk_without_a_cooldown_is_told_what_it_was_tuned_for() -> None:
    schedule = schedule_of(run(1000))
    tuned = Trunk.of(schedule, 2e-3, Tuning(1000, 200, "linear", 0.0), at=800)
    for ours, other in zip(
        options(tuned, 3000),
        options(Trunk.of(schedule_of(run(1000, "20%")), 2e-3), 3000),
        strict=True,
    ):
        assert (ours.what, ours.branch) == (other.what, other.branch)
        assert ours.bound == pytest.approx(other.bound)
    found = options(Trunk.of(schedule, 2e-3, Tuning(1000, 200, "linear", 0.0)), 3000)
    assert by_name(found)["lower rate, matched"].branch == 1000
    shorter = Trunk.of(schedule, 2e-3, Tuning(600, 120, "1-sqrt", 0.1))
    assert shorter.tuned.describe().endswith(
        "constant 50-480 at 0.002, cooldown 480-600 1-sqrt to 0.0002"
    )
    assert options(shorter, 1200)[0].cooldown == 240


def test_no_factor_matches_a_run_that_is_far_behind_its_tuning() -> None:
    """Constant to eight times the horizon it suits, its rate cannot be made right any more."""
    schedule = schedule_of(run(8000))
    found = by_name(options(Trunk.of(schedule, 2e-3, Tuning(1000, 200, "linear", 0.0)), 11_000))
    assert "lower rate, matched" not in found
    assert found["lower rate, least bound"].bound < found["as it is"].bound


def test_a_rate_that_was_lowered_before_is_carried_on_as_it_is() -> None:
    config = run(1000, "20%", stages=[StageConfig(at=steps(400), factor=0.5)])
    start = Trunk.of(schedule_of(config), 2e-3)
    assert start.ready == 400
    option = by_name(options(start, 2000))["lower rate, least bound"]
    rates = option.schedule.rates()
    assert rates[399:401].tolist() == [2e-3, 1e-3]
    assert rates[800] == pytest.approx(option.factor * 1e-3)


@pytest.mark.parametrize(
    "name,at,to,words",
    [
        ("cosine", None, 8000, ["not constant", "cosine"]),
        ("inverse-sqrt-20%", None, 8000, ["not constant"]),
        ("wsd", 3300, 8000, ["at: step 3300", "use 0 to 3200"]),
        ("wsd", -5, 8000, ["at: step -5"]),
        ("wsd", None, 4000, ["to: step 4000", "4000 steps"]),
    ],
)
def test_bad_input(name: str, at: int | None, to: int, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        options(Trunk.of(parse(name).schedule(TUNED), 1.0, at=at), to)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "tuning,words",
    [
        (Tuning(1000, 0, "linear", 0.0), ["cooldown.length: 0 steps", "1000"]),
        (Tuning(1000, 980, "linear", 0.0), ["cooldown.length: 980 steps", "from step 50"]),
        (Tuning(1000, 200, "linear", 1.5), ["cooldown.floor: 1.5"]),
    ],
)
def test_bad_tuning(tuning: Tuning, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Trunk.of(schedule_of(run(1000)), 2e-3, tuning)
    for word in words:
        assert word in str(error.value)


@given(st.integers(0, 60), st.floats(-100, 4000), st.integers(1, 30))
def test_nearest(low: int, target: float, length: int) -> None:
    best = min(range(low, low + length + 1), key=lambda n: abs(n * n - target))
    found = nearest(lambda n: float(n * n), target, low, low + length)
    assert abs(found * found - target) == abs(best * best - target)
