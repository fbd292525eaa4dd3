"""Fits to losses that a law made: the law is found again, and intervals hold their share."""

import numpy as np
import pytest

from llm_pretrain.errors import UserError
from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.convex import ConvexLaw
from llm_pretrain.predict.discrepancy import Discrepancy, places
from llm_pretrain.predict.fit import Problem, fit
from llm_pretrain.predict.history import Case, History
from llm_pretrain.predict.law import Law
from llm_pretrain.predict.multipower import MultiPowerLaw
from llm_pretrain.predict.observe import REPEAT, curve_of, final, repeatability
from llm_pretrain.predict.predictor import Prediction, Predictor, lacking
from llm_pretrain.predict.prior import shipped
from llm_pretrain.schedule.phase import Phase
from llm_pretrain.schedule.schedule import Schedule
from tests.predict.law_family import DECAY, cosine, made, observations, trunk_steps, typical, wsd

LAWS: list[Law] = [AngularLaw(), ConvexLaw(), MultiPowerLaw()]
TRUNK = wsd(20_000, 0)
COOLED = [wsd(8_000, 1_600), wsd(12_000, 1_200), wsd(16_000, 6_400)]
UNSEEN = [wsd(20_000, 4_000), wsd(30_000, 6_000), wsd(20_000, 18_000), cosine(20_000)]
RATES = [wsd(20_000, 4_000, 2e-3), cosine(20_000, 2e-3)]


def cases(*histories: History) -> list[Case]:
    """Each at its end."""
    return [Case(history, history.total) for history in histories]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.title)
def test_a_law_without_noise_is_found_again(law: Law) -> None:
    values = typical(law)
    values[1:] += 0.1 * np.cos(np.arange(len(values) - 1))
    curve = made(law, values, [Case(TRUNK, step) for step in trunk_steps(TRUNK.total)])
    ends = made(law, values, cases(*COOLED))
    known = observations(TRUNK, curve, list(zip(COOLED, ends, strict=True)))
    predictor = Predictor.fit(known, weight_decay=DECAY, law=law)
    found = predictor.predict_all([(history, None) for history in UNSEEN])
    np.testing.assert_allclose(
        [p.loss for p in found], made(law, values, cases(*UNSEEN)), atol=2e-3
    )


def test_intervals_hold_their_share() -> None:
    """Parameters from the prior, losses with the law's error and noise as a fit assumes them."""
    law, draw = AngularLaw(), np.random.default_rng(5)
    prior, steps = shipped(law), np.geomspace(1_600, TRUNK.total, 12).astype(int).tolist()
    seen = [Case(TRUNK, step) for step in steps] + cases(*COOLED)
    where = seen + cases(*UNSEEN, *RATES)
    here = places(where)
    error = np.linalg.cholesky(Discrepancy().covariance(here, here) + 1e-12 * np.eye(len(where)))
    held = []
    for _ in range(20):
        values = draw.multivariate_normal(prior.at(3.0), prior.covariance)
        values[0] = 2.7
        losses = made(law, values, where) + error @ draw.normal(size=len(where))
        losses += draw.normal(scale=REPEAT, size=len(where))
        known = [final(c.history, c.step, x) for c, x in zip(seen, losses, strict=False)]
        found = fit(Problem(law, tuple(known), prior, DECAY))
        mean, deviation = found.predict(where[len(seen) :])
        half = 1.2816 * np.hypot(deviation, REPEAT)
        held += (np.abs(losses[len(seen) :] - mean) <= half).tolist()
    assert len(held) == 120
    # The deviation of the share, as six losses of one draw are alike: about 0.06.
    assert 0.65 <= np.mean(held) <= 0.95


def test_an_offset_of_the_curve_is_found() -> None:
    law = AngularLaw()
    values = typical(law)
    curve = made(law, values, [Case(TRUNK, step) for step in trunk_steps(TRUNK.total)]) - 0.04
    ends = made(law, values, cases(TRUNK, *COOLED))
    known = observations(TRUNK, curve, list(zip([TRUNK, *COOLED], ends, strict=True)))
    found = Predictor.fit(known, weight_decay=DECAY, offset=(0.0, 0.1)).predict(UNSEEN[0])
    assert found.loss == pytest.approx(made(law, values, cases(UNSEEN[0]))[0], abs=2e-3)


def test_a_law_that_does_not_fit_is_less_certain() -> None:
    """Losses that wobble by 0.05 nats along the trunk: the interval must say so."""
    law = AngularLaw()
    values = typical(law)
    steps = trunk_steps(TRUNK.total)
    curve = made(law, values, [Case(TRUNK, step) for step in steps])
    ends = list(zip(COOLED, made(law, values, cases(*COOLED)), strict=True))
    widths = []
    for size in (0.0, 0.05):
        wobble = size * np.sin(3 * np.log(np.array(steps)))
        predictor = Predictor.fit(observations(TRUNK, curve + wobble, ends), weight_decay=DECAY)
        found = predictor.predict(UNSEEN[1])
        widths.append(found.high - found.low)
    assert widths[1] > 3 * widths[0]


def test_a_finished_branch_teaches() -> None:
    """After one cooldown the interval of another is much narrower than before any."""
    law = AngularLaw()
    values = typical(law)
    curve = made(law, values, [Case(TRUNK, step) for step in trunk_steps(TRUNK.total)])
    ends = list(zip(COOLED, made(law, values, cases(*COOLED)), strict=True))

    def width(known: list[tuple[History, float]]) -> float:
        predictor = Predictor.fit(observations(TRUNK, curve, known), weight_decay=DECAY)
        found = predictor.predict(UNSEEN[0])
        assert found.low < found.loss < found.high
        return found.high - found.low

    assert width(ends) < width(ends[:1]) < width([]) / 2


def test_schedules_arrays_and_histories_are_the_same() -> None:
    phases = (
        Phase("warmup", 0, 100, 0.0, 1.0, "linear", 1e-3),
        Phase("constant", 100, 15_900, 1.0, 1.0, "linear", 1e-3),
        Phase("cooldown", 16_000, 4_000, 1.0, 0.0, "linear", 1e-3),
    )
    schedule = Schedule(phases, (100, 16_000, 20_000))
    values = typical(AngularLaw())
    curve = made(AngularLaw(), values, [Case(TRUNK, s) for s in trunk_steps(TRUNK.total)])
    predictor = Predictor.fit(observations(TRUNK, curve, []), weight_decay=DECAY)
    one = predictor.predict(schedule)
    assert isinstance(one, Prediction)
    assert (
        one == predictor.predict(schedule.rates()) == predictor.predict(History(schedule.rates()))
    )
    assert predictor.predict(schedule, 18_000).loss > one.loss
    assert predictor.predict_all([]) == []
    assert predictor.parameters["floor"] < one.loss


def test_a_short_history_is_told() -> None:
    losses = [5.0 - 0.1 * i for i in range(8)]
    few = curve_of(TRUNK, trunk_steps(1_000), losses[:5])
    assert "usable points" in (lacking(few) or "")
    narrow = curve_of(TRUNK, list(range(10_000, 10_800, 100)), losses)
    assert "over a factor of 2" in (lacking(narrow) or "")
    assert lacking(curve_of(TRUNK, trunk_steps(4_000), [4.0 + 1 / i for i in range(1, 21)])) is None
    with pytest.raises(UserError, match="no prediction: the trunk's curve has"):
        Predictor.fit(few, weight_decay=DECAY)


def test_far_predictions_carry_a_caution() -> None:
    law = AngularLaw()
    curve = made(law, typical(law), [Case(TRUNK, step) for step in trunk_steps(TRUNK.total)])
    predictor = Predictor.fit(observations(TRUNK, curve, []), weight_decay=DECAY)
    assert predictor.caution(wsd(40_000, 8_000, 2e-3)) is None
    assert "peak rate" in (predictor.caution(wsd(20_000, 4_000, 3e-3)) or "")
    assert "steps" in (predictor.caution(wsd(100_000, 20_000)) or "")


def test_noise_of_a_curve_is_measured() -> None:
    steps = list(range(2_000, 20_001, 40))
    clean = 3 + 10 / np.sqrt(np.array(steps))
    noisy = clean + np.random.default_rng(0).normal(scale=0.01, size=len(steps))
    assert repeatability(TRUNK, steps, clean.tolist()) == REPEAT
    assert repeatability(TRUNK, steps, noisy.tolist()) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.0, -1.0])
def test_bad_losses_are_told(loss: float) -> None:
    with pytest.raises(UserError, match=r"loss: .*needs a number of nats above 0"):
        final(TRUNK, 100, loss)
    with pytest.raises(UserError, match="needs a number of nats above 0"):
        curve_of(TRUNK, [100], [loss])


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UserError, match="2 steps but 1 losses"):
        curve_of(TRUNK, [100, 200], [3.0])
    curve = curve_of(TRUNK, trunk_steps(4_000), [4.0 + 1 / i for i in range(1, 21)])
    with pytest.raises(UserError, match="weight_decay: -1"):
        Predictor.fit(curve, weight_decay=-1)
