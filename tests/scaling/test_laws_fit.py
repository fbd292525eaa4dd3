"""The robust fit against SciPy's, laws without noise, and what was left out by hand."""

import math

import numpy as np
import pytest
from scipy import optimize

from llm_pretrain.errors import UserError
from llm_pretrain.scaling import solve
from llm_pretrain.scaling.laws import fit
from llm_pretrain.scaling.parametric import parametric, predict
from llm_pretrain.scaling.points import Point
from tests.scaling.known import BESIROGLU, HOFFMANN, loss, points


def arrays(own: list[Point]) -> tuple[solve.Array, solve.Array]:
    """Variables and losses as the solver takes them."""
    return np.array([[p.params for p in own], [p.tokens for p in own]]), np.array(
        [p.loss for p in own]
    )


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
def test_without_noise_the_law_comes_back(law: dict[str, float]) -> None:
    found = fit(points(law), draws=20)
    assert found.parametric is not None
    for name, value in law.items():
        assert getattr(found.parametric, name).value == pytest.approx(value, rel=1e-4)
    assert found.parametric.loose == ()
    assert not found.notes
    assert not found.excluded


@pytest.mark.parametrize("seed", [0, 1])
def test_the_minimum_is_that_of_scipy(seed: int) -> None:
    own = points(noise=0.003, seed=seed)
    variables, losses = arrays(own)
    ours = solve.fit(variables, losses).theta[0]
    logs = np.log(variables)

    def residuals(theta: solve.Array) -> solve.Array:
        a, b, e, alpha, beta = theta
        terms = [a - alpha * logs[0], b - beta * logs[1], np.full(len(losses), e)]
        return np.asarray(np.logaddexp.reduce(terms) - np.log(losses))

    def least(start: list[float]) -> float:
        found = optimize.least_squares(
            residuals, start, loss="huber", f_scale=solve.DELTA, xtol=1e-14, ftol=1e-14, gtol=1e-14
        )
        return float(found.cost)

    starts = [[a, a, 0.5, e, e] for a in (2.0, 6.0, 10.0) for e in (0.2, 0.4, 0.8)]
    reference = min(map(least, starts))
    mine = float(solve.huber(residuals(ours)))
    assert mine <= reference * (1 + 1e-6)
    # And no point near it is lower: a brute-force look around.
    rng = np.random.default_rng(seed)
    around = ours + 0.002 * rng.standard_normal((2000, 5)) * np.array([1, 1, 0.1, 0.05, 0.05])
    assert min(float(solve.huber(residuals(theta))) for theta in around) >= mine


def test_one_failed_run_moves_a_robust_fit_little() -> None:
    own = points(noise=0.0005)
    bad = [*own[:17], Point(**{**vars(own[17]), "loss": own[17].loss * 1.1}), *own[18:]]
    theta = solve.fit(*arrays(bad)).theta[0]
    squares, _ = optimize.curve_fit(
        lambda v, a, b, e, x, y: np.logaddexp.reduce(
            [a - x * np.log(v[0]), b - y * np.log(v[1]), np.full(v.shape[1], e)]
        ),
        arrays(bad)[0],
        np.log(arrays(bad)[1]),
        p0=theta,
    )
    far = [abs(fitted[3] - HOFFMANN["alpha"]) for fitted in (theta, squares)]
    assert far[0] < 0.1 * far[1]


def test_left_out_by_hand() -> None:
    own = points(noise=0.001, seed=3)
    found = fit(own, draws=20)
    assert {one.kind for one in found.left_out} == {"size", "horizon"}
    largest = next(one for one in found.left_out if one.kind == "size" and one.beyond)
    size = max(p.params for p in own)
    rest = [p for p in own if p.params < size]
    theta = solve.fit(*arrays(rest)).theta[0]
    left = [p for p in own if p.params == size]
    errors = [float(predict(theta, *np.array([p.params, p.tokens]))) - p.loss for p in left]
    assert largest.name == left[0].size
    assert largest.count == len(left)
    assert largest.mean == pytest.approx(math.fsum(errors) / len(errors), abs=1e-6)
    assert largest.worst == pytest.approx(max(map(abs, errors)), abs=1e-6)


def test_what_is_left_out_does_not_touch_its_prediction() -> None:
    own = points(noise=0.001)
    size = own[-1].params
    moved = [p if p.params < size else Point(**{**vars(p), "loss": p.loss + 0.03}) for p in own]
    one, two = (
        next(x for x in fit(values, draws=20).left_out if x.kind == "size" and x.beyond)
        for values in (own, moved)
    )
    assert two.mean == pytest.approx(one.mean - 0.03, abs=1e-5)


def test_one_size_has_a_law_in_tokens_only() -> None:
    own = points(sizes=[1e8], ratios=[2, 5, 10, 20, 50, 100])
    found = fit(own, draws=20)
    assert found.parametric is found.envelope is found.isoflop is None
    (law,) = found.tokens_only
    assert law.beta.value == pytest.approx(HOFFMANN["beta"], rel=1e-3)
    assert law.E.value == pytest.approx(
        HOFFMANN["E"] + HOFFMANN["A"] * 1e8 ** -HOFFMANN["alpha"], rel=1e-4
    )
    assert any("needs runs of 3 sizes" in note for note in found.notes)
    assert any("no envelope" in note for note in found.notes)
    assert len(found.left_out) == 6
    with pytest.raises(UserError, match="needs runs of 3 sizes at least, there is 1 size"):
        found.optimum(1e20)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([], "needs runs of 3 sizes at least, there are 0 sizes"),
        (points(sizes=[1e8], ratios=[2, 5, 10]), "needs 4 lengths at least, there are 3"),
        (points(sizes=[1e8, 2e8, 4e8], ratios=[20]), "needs 7 different pairs"),
    ],
)
def test_too_few_points(own: list[Point], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(own)


def test_equal_sizes_of_several_seeds_narrow_the_interval() -> None:
    one = points(noise=0.002, seed=1)
    three = [*one, *points(noise=0.002, seed=2), *points(noise=0.002, seed=3)]
    widths = []
    for own in (one, three):
        law = parametric(own, 200, 0)[0]
        assert law.beta.low is not None
        assert law.beta.high is not None
        widths.append(law.beta.high - law.beta.low)
    assert widths[1] == pytest.approx(widths[0] / math.sqrt(3), rel=0.35)


def test_the_law_says_its_own_losses() -> None:
    law = fit(points(), draws=20).parametric
    assert law is not None
    assert law.loss(7e9, 1.4e11) == pytest.approx(loss(HOFFMANN, 7e9, 1.4e11), rel=1e-4)
