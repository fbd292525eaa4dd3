"""The bound against its formula in exact arithmetic, closed forms, and the authors' numbers."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.errors import UserError
from llm_pretrain.theory.bound import Terms, averaged, curve, last_iterate, moving, suffix_sums
from llm_pretrain.theory.named import Named, parse
from tests.theory import formulas
from tests.theory.formulas import REFERENCE

rates = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)
scales = st.floats(1e-3, 1e3)


def close(terms: Terms, expected: tuple[float, float], rel: float) -> bool:
    return (terms.distance, terms.noise) == (
        pytest.approx(expected[0], rel=rel),
        pytest.approx(expected[1], rel=rel),
    )


@given(rates, st.randoms(use_true_random=False))
def test_the_formula_as_it_stands(steps: list[float], draw: Any) -> None:
    norms = [draw.uniform(0.1, 10) for _ in steps]
    assert close(last_iterate(steps, norms=norms), formulas.direct(steps, norms), 1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 127, 128, 129, 4000])
def test_closed_forms(total: int) -> None:
    assert close(parse("constant").terms(total), formulas.constant(total), 1e-13)
    assert close(parse("linear").terms(total), formulas.linear(total), 1e-13)
    for m in {1, max(1, total // 5), total}:
        named = Named.of("wsd", {"cooldown": {"length": f"{m} steps"}})
        assert close(named.terms(total), formulas.wsd_linear(total, m), 1e-13)


@pytest.mark.parametrize("case", REFERENCE["bounds"], ids=lambda c: f"{c['schedule']},{c['D']}")
def test_the_authors_numbers(case: dict[str, Any]) -> None:
    multipliers = parse(case["schedule"]).multipliers(case["steps"])
    accurate = case["schedule"].startswith(("wsd", "constant"))
    rel = 1e-9 if accurate else 1e-5
    size = {"norms": case["G"], "distance": case["D"]}
    terms, mean = last_iterate(multipliers, **size), averaged(multipliers, **size)
    assert terms.optimal_rate == pytest.approx(case["gamma_star"], rel=rel)
    assert terms.optimal_bound == pytest.approx(case["omega_star"], rel=rel)
    assert terms.at(0.01) == pytest.approx(case["omega@0.01"], rel=rel)
    assert terms.at(0.05) == pytest.approx(case["omega@0.05"], rel=rel)
    assert terms.distance / 0.01 == pytest.approx(case["terms@0.01"][0], rel=rel)
    assert mean.optimal_rate == pytest.approx(case["gamma_star_avg"], rel=rel)
    assert mean.optimal_bound == pytest.approx(case["omega_star_avg"], rel=rel)


@pytest.mark.parametrize(
    "name,changes,total,rate,bound",
    [
        ("cosine-10%", {}, 1000, 0.0271163271, 0.0669963681),
        ("wsd", {"warmup": "50 steps"}, 1000, 0.0164682614, 0.0693773404),
        ("wsd-20%", {}, 4000, 0.0081182938, 0.0342115239),
        ("two-stage", {}, 8000, 0.0083395565, 0.0230585940),
    ],
)
def test_more_of_the_authors_numbers(
    name: str, changes: dict[str, Any], total: int, rate: float, bound: float
) -> None:
    """With a floor, a warmup, many steps, and a drop of the rate."""
    terms = parse(name, changes).terms(total)
    assert terms.optimal_rate == pytest.approx(rate, rel=1e-5)
    assert terms.optimal_bound == pytest.approx(bound, rel=1e-5)


def test_falling_norms() -> None:
    norms = np.arange(1, 201) ** -0.5
    terms = last_iterate(parse("wsd").multipliers(200), norms=norms)
    assert terms.at(0.05) == pytest.approx(0.0567922531, rel=1e-8)


def test_a_million_steps_lose_no_digits() -> None:
    """Long double is no reference where it is double: whole numbers are."""
    steps = parse("wsd-20%-1-sqrt").multipliers(1_000_000)
    assert close(last_iterate(steps), formulas.exact(steps.tolist()), 1e-13)


def test_rates_of_all_sizes_lose_no_digits() -> None:
    """Rates over seven orders of magnitude, large ones before small ones and after."""
    draw = np.random.default_rng(0)
    steps = 10 ** draw.uniform(-7, 0, 50_000)
    for values in (steps, np.sort(steps), np.sort(steps)[::-1]):
        assert close(last_iterate(values), formulas.exact(values.tolist()), 1e-13)


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=700))
def test_suffix_sums(values: list[int]) -> None:
    sums = suffix_sums(np.array(values, dtype=np.float64))
    assert sums.tolist() == [float(sum(values[k:])) for k in range(len(values))]


def test_the_course_of_the_bound() -> None:
    at = [1, 50, 320, 321, 360, 399, 400]
    found = curve(parse("wsd").multipliers(400), at).at(0.03)
    expected = [
        16.6816666667, 0.4155214134, 0.1622429335, 0.1621275562, 0.1370688872, 0.1108979373,
        0.1108599352,
    ]  # fmt: skip
    assert found.tolist() == pytest.approx(expected, rel=1e-8)


@given(rates, st.sets(st.integers(1, 40), min_size=1), scales)
def test_a_curve_is_the_bounds_of_the_schedule_cut(
    steps: list[float], at: set[int], distance: float
) -> None:
    grid = sorted(t for t in at if t <= len(steps)) or [len(steps)]
    norms = [1.0 + k % 3 for k in range(len(steps))]
    found = curve(steps, grid, norms=norms, distance=distance)
    for t, t1, t2 in zip(grid, found.distance, found.noise, strict=True):
        cut = last_iterate(steps[:t], norms=norms[:t], distance=distance)
        assert close(cut, (float(t1), float(t2)), 1e-12)


@given(rates, scales, scales, scales)
def test_scaling(steps: list[float], by: float, distance: float, norm: float) -> None:
    """Rates in another unit, distance and gradients of another size."""
    for bound in (last_iterate, averaged):
        plain, scaled = bound(steps), bound([by * step for step in steps])
        assert scaled.at(1.0) == pytest.approx(plain.at(by))
        assert scaled.optimal_bound == pytest.approx(plain.optimal_bound)
        sized = bound(steps, norms=norm, distance=distance)
        assert sized.optimal_rate == pytest.approx(plain.optimal_rate * distance / norm)
        assert sized.optimal_bound == pytest.approx(plain.optimal_bound * distance * norm)


@given(rates, scales)
def test_the_best_rate_is_the_best(steps: list[float], rate: float) -> None:
    terms = last_iterate(steps)
    assert terms.at(terms.optimal_rate) == pytest.approx(terms.optimal_bound)
    assert terms.at(rate) >= terms.optimal_bound * (1 - 1e-12)


@given(st.integers(200, 3000), st.sampled_from(["5%", "20%", "50%", "100%"]))
def test_a_cooldown_lowers_the_bound(total: int, length: str) -> None:
    """Of ten updates or more: in the best schedules the last three have the same rate."""
    plain = parse("constant").terms(total)
    for shape in ("linear", "1-sqrt", "cosine"):
        cooled = Named.of("wsd", {"cooldown": {"length": length, "shape": shape}}).terms(total)
        assert cooled.optimal_bound < plain.optimal_bound
        assert cooled.optimal_rate > plain.optimal_rate


def test_updates_at_rate_zero_are_left_out() -> None:
    named = parse("wsd", {"warmup": "10 steps", "warmup_from": 0.0})
    multipliers = named.multipliers(100)
    assert multipliers[0] == 0
    assert named.terms(100) == last_iterate(multipliers[1:])
    assert moving(np.array([0.0, 1.0, 0.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "multipliers,options,words",
    [
        ([], {}, ["multipliers", "shape (0,)", "each update"]),
        ([[1.0]], {}, ["multipliers", "shape (1, 1)"]),
        ([1.0, 0.0, 1.0], {}, ["multipliers[1]: 0", "above 0"]),
        ([1.0, -0.5], {}, ["multipliers[1]: -0.5"]),
        ([1.0, math.nan], {}, ["multipliers[1]: nan"]),
        ([math.inf, 1.0], {}, ["multipliers[0]: inf", "finite"]),
        ([1.0, 1.0], {"norms": math.nan}, ["norms: nan"]),
        ([1.0, 1.0], {"norms": [1.0, math.nan]}, ["norms[1]: nan"]),
        ([1.0, 1.0], {"norms": [1.0, -1.0]}, ["norms[1]: -1"]),
        ([1.0, 1.0], {"norms": [1.0]}, ["norms", "shape (1,)", "2"]),
        ([1.0, 1.0], {"distance": 0.0}, ["distance: 0", "positive"]),
    ],
)
def test_bad_input(multipliers: Any, options: dict[str, Any], words: list[str]) -> None:
    for bound in (last_iterate, averaged, lambda m, **o: curve(m, [1], **o)):
        with pytest.raises(UserError) as error:
            bound(multipliers, **options)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize("at", [[], [0], [4], [2, 2], [3, 1]])
def test_a_curve_needs_a_grid_within_the_run(at: list[int]) -> None:
    with pytest.raises(UserError, match="at: "):
        curve([1.0, 1.0, 1.0], at)


def test_a_bound_needs_a_rate() -> None:
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="lr: "):
            last_iterate([1.0]).at(rate)
        with pytest.raises(UserError, match="lr: "):
            curve([1.0], [1]).at(rate)
