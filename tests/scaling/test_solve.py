"""The search: its derivatives, whether it stops at the minimum, and what it says of its bounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_pretrain.scaling import solve, steps
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.interval import Estimate
from llm_pretrain.scaling.laws import Laws, fit
from llm_pretrain.scaling.parametric import parametric, predict
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.read import read
from llm_pretrain.scaling.words import law, optimum, parameters
from tests.scaling.known import HOFFMANN, points

PUBLISHED = Path(__file__).parent / "published.json"


def published(source: str) -> list[Point]:
    """Runs of one source."""
    return [p for p in read([PUBLISHED], Counting()).points if p.source == source]


def arrays(own: list[Point]) -> tuple[solve.Array, solve.Array]:
    """Variables and losses as the solver takes them."""
    variables = np.array([[p.params for p in own], [p.tokens for p in own]])
    return variables, np.array([p.loss for p in own])


def test_coordinates_and_parameters_say_the_same() -> None:
    own = points()
    variables, losses = arrays(own)
    theta = np.array([[np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28]])
    problem = solve.Problem.of(variables, losses)
    at = problem.coordinates(theta)
    assert problem.parameters(at) == pytest.approx(theta)
    assert np.exp(problem.predict(at)[0]) == pytest.approx(losses)


def test_derivatives_are_those_of_differences() -> None:
    variables, losses = arrays(points(noise=0.01))
    problem = solve.Problem.of(variables, losses)
    at = np.array([1.3, 0.1, -0.2, 4.0, 2.5])
    target = np.log(losses)[None]
    counted = np.random.default_rng(0).integers(0, 2, target.shape).astype(float)
    delta = 0.05  # some residuals on either side, none near it

    def around(where: solve.Array) -> steps.Quadratic:
        return steps.quadratic(problem.x, where[None], target, counted, delta)

    def value(where: solve.Array) -> float:
        size = np.abs(problem.predict(where[None]) - target)
        each = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
        return float((counted * each).sum())

    found = around(at)
    for i, step in enumerate(1e-5 * np.eye(5)):
        slope = (value(at + step) - value(at - step)) / 2e-5
        assert found.gradient[0, i] == pytest.approx(slope, rel=1e-6)
        row = (around(at + step).gradient[0] - around(at - step).gradient[0]) / 2e-5
        assert found.curvature[0, i] == pytest.approx(row, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("source", ["cooldown", "cosine", "average", "constant"])
def test_every_draw_of_the_published_runs_is_at_its_minimum(source: str) -> None:
    """Begun again where it ended, and from elsewhere, no search gets lower."""
    own = published(source)
    variables, losses = arrays(own)
    found, fitted = parametric(own, 200, 0)
    assert found.unsettled == 0
    drawn = np.log(predict(fitted.best, *variables)) + fitted.errors
    problem = solve.Problem.of(variables, losses)
    ended = problem.coordinates(fitted.drawn)
    lowest = solve.huber(problem.predict(ended) - drawn)
    again, _ = solve.descend(problem, drawn, ended)
    assert solve.huber(problem.predict(again) - drawn) == pytest.approx(lowest, rel=1e-6)
    others = ended[np.random.default_rng(1).permutation(len(ended))]
    again, _ = solve.descend(problem, drawn, others)
    assert (solve.huber(problem.predict(again) - drawn) > lowest * (1 - 1e-6)).all()


def test_a_search_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "_LIMIT", 10)
    found = fit(published("cooldown"), draws=50)
    assert found.parametric is not None
    count = found.parametric.unsettled
    assert 0 < count <= 50
    assert f"the fit to {count} of 50 draws had not come to rest" in found.notes


def without_a_floor() -> Laws:
    """Of losses that fall below any E."""
    own = points({**HOFFMANN, "E": 1e-6}, noise=0.002)
    return fit([replace(p, loss=p.loss - 0.1) for p in own], draws=50)


def test_an_end_at_the_bound_of_the_search_is_open() -> None:
    found = without_a_floor()
    assert found.parametric is not None
    assert found.parametric.E.low is None
    assert found.parametric.loose == ("E",)
    said = "At the edge of the search, so not held by these points: E."
    assert law(found)[0].endswith(said)
    assert dict(parameters(found))["E"].startswith("0.00")
    assert "(open to " in dict(parameters(found))["E"]
    assert dict(parameters(found))["E"].endswith("at the edge of the search")
    assert optimum(found.optimum(1e21)).endswith(said)
    assert not optimum(found.optimum(1e21, "isoflop")).endswith(said)


def test_a_factor_is_held_no_better_than_its_exponent() -> None:
    """Where size has next to no effect, neither A nor alpha is known."""
    found = fit(points({**HOFFMANN, "A": 1e-9}, noise=0.001), draws=50).parametric
    assert found is not None
    assert found.loose == ("A", "alpha")
    assert (found.A.low, found.A.high) == (None, None)
    assert found.B.low is not None
    assert found.B.high is not None
    problem = solve.Problem.of(*arrays(points()))
    for exponent, factor, own in ((0.01, 2, -1), (3.0, 1, 1), (0.3, 0, 0)):
        same_size = 6.0 + (exponent - 0.34) * problem.centre[0]
        at = problem.coordinates(np.array([[same_size, 6.0, 0.5, exponent, 0.3]]))
        assert problem.edges(at).tolist() == [[factor, 0, 0, own, 0]]


def test_laws_of_several_sources_are_told() -> None:
    found = fit([*points(), *points(source="cosine")], draws=20)
    assert found.notes == ("one law for results of different sources: cooldown, cosine",)


def test_open_and_unknown_draws_widen_an_interval() -> None:
    drawn = np.linspace(1.0, 2.0, 101)
    plain = Estimate.of(1.5, drawn)
    assert (plain.low, plain.high) == pytest.approx((1.02, 1.98))
    edge = np.where(drawn > 1.95, 1, 0)
    assert Estimate.of(1.5, drawn, edge) == Estimate(1.5, plain.low, None)
    assert Estimate.of(1.5, drawn, 2 * edge) == Estimate(1.5, None, None)
    unknown = np.where(edge == 1, np.nan, drawn)
    assert Estimate.of(1.5, unknown) == Estimate(1.5, None, None)
