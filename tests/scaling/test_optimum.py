"""Best sizes against closed forms, a search, and curves that cross where they must."""

import math

import numpy as np
import pytest
from scipy import optimize

from llm_pretrain.errors import UserError
from llm_pretrain.scaling.laws import Cost, closed_form, cost_of, fit
from llm_pretrain.scaling.points import Point
from tests.scaling.known import BESIROGLU, HOFFMANN, loss, points

CHINCHILLA = 5.76e23


def theta(law: dict[str, float]) -> np.ndarray:
    """The solver's parameters."""
    logs = [math.log(law[name]) for name in ("A", "B", "E")]
    return np.array([*logs, law["alpha"], law["beta"]])


@pytest.mark.parametrize(("law", "ratio"), [(HOFFMANN, (60, 100)), (BESIROGLU, (15, 25))])
@pytest.mark.parametrize("budget", [1e19, CHINCHILLA])
def test_closed_form_is_the_papers(
    law: dict[str, float], ratio: tuple[float, float], budget: float
) -> None:
    size, tokens = closed_form(theta(law), Cost(6.0, 1.0, 0.0), budget)
    both = law["alpha"] + law["beta"]
    factor = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / both)
    assert float(size) == pytest.approx(factor * (budget / 6) ** (law["beta"] / both))
    assert float(tokens) == pytest.approx((budget / 6) ** (law["alpha"] / both) / factor)
    if budget == CHINCHILLA:
        assert ratio[0] < float(tokens / size) < ratio[1]


def test_closed_form_with_another_cost_is_what_a_search_finds() -> None:
    cost, budget = Cost(11.0, 0.95, 0.0), 1e21

    def at(log_size: float) -> float:
        size = math.exp(log_size)
        return loss(BESIROGLU, size, budget / (11.0 * size**0.95))

    found = optimize.minimize_scalar(at, bounds=(15, 28), method="bounded", options={"xatol": 1e-9})
    size, tokens = closed_form(theta(BESIROGLU), cost, budget)
    assert math.log(float(size)) == pytest.approx(found.x, abs=1e-4)
    assert float(tokens * 11.0 * size**0.95) == pytest.approx(budget)


def test_cost_is_that_of_the_points() -> None:
    assert cost_of(points()) == Cost(pytest.approx(6), pytest.approx(1), pytest.approx(0, abs=1e-9))
    own = [Point(**{**vars(p), "flops": 9 * p.params**0.9 * p.tokens}) for p in points()]
    assert cost_of(own) == Cost(pytest.approx(9), pytest.approx(0.9), pytest.approx(0, abs=1e-9))


def test_every_approach_finds_the_best_size_without_noise() -> None:
    found = fit(points(), draws=20)
    exponent = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])
    assert found.envelope is not None
    assert found.isoflop is not None
    assert found.envelope.exponent.value == pytest.approx(exponent, abs=0.01)
    assert found.isoflop.exponent.value == pytest.approx(exponent, abs=0.01)
    reference = float(closed_form(theta(HOFFMANN), Cost(6.0, 1.0, 0.0), 1e20)[0])
    answers = found.optima(1e20)
    assert [one.method for one in answers] == ["parametric", "envelope", "isoflop"]
    for one in answers:
        assert one.params.value == pytest.approx(reference, rel=0.02)
        assert 6 * one.params.value * one.tokens.value == pytest.approx(1e20)
    assert answers[0].loss is not None
    assert answers[0].loss.value == pytest.approx(loss(HOFFMANN, reference, 1e20 / 6 / reference))


def test_the_envelope_changes_size_where_the_curves_cross() -> None:
    found = fit(points(), draws=20).envelope
    assert found is not None
    for place in found.places:
        sizes = [next(p.params for p in points() if p.size == name) for name in place.sizes]
        assert place.params.value == pytest.approx(math.sqrt(sizes[0] * sizes[1]))

        def gap(log_budget: float, sizes: list[float] = sizes) -> float:
            budget = math.exp(log_budget)
            losses = [loss(HOFFMANN, size, budget / (6 * size)) for size in sizes]
            return losses[1] - losses[0]

        crossing = optimize.brentq(gap, math.log(1e15), math.log(1e24))
        assert math.log(place.flops.value) == pytest.approx(crossing, abs=0.03)


def test_without_common_budgets_there_is_no_frontier_and_that_is_said() -> None:
    found = fit(points(ratios=[20, 21, 22]), draws=20)
    assert found.parametric is not None
    assert found.envelope is found.isoflop is None
    assert any(note.startswith("no envelope: 0 of 7") for note in found.notes)
    assert any(note.startswith("no IsoFLOP parabolas: 0 budgets") for note in found.notes)
    with pytest.raises(UserError, match="no isoflop law to answer with"):
        found.optimum(1e20, "isoflop")


def test_the_seed_makes_the_intervals() -> None:
    own = points(noise=0.002)
    assert fit(own, draws=50, seed=1) == fit(own, draws=50, seed=1)
    assert fit(own, draws=50, seed=1).parametric != fit(own, draws=50, seed=2).parametric


@pytest.mark.parametrize("budget", [0.0, -1e20, math.nan, math.inf])
def test_a_budget_that_is_none(budget: float) -> None:
    with pytest.raises(UserError, match="is no number of FLOPs"):
        fit(points(), draws=20).optimum(budget)
