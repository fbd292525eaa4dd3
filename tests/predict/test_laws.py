"""Each law against its formula written out update by update."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.errors import UserError
from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.convex import ConvexLaw
from llm_pretrain.predict.history import STRETCHES, Array, Case, History
from llm_pretrain.predict.law import named
from llm_pretrain.predict.multipower import MultiPowerLaw
from llm_pretrain.theory.bound import last_iterate
from tests.predict.law_family import cosine, wsd

HISTORIES = {
    "trunk": wsd(3000, 0),
    "cooled": wsd(3000, 600),
    "linear": wsd(3000, 2900),
    "cosine": cosine(3000, 2e-3),
    "two-stage": History(np.where(np.arange(3000) < 1500, 2e-3, 5e-4)),
}


def angular_by_hand(values: Array, rates: Array, decay: float) -> float:
    """The angular law as its docstring has it, one update after another."""
    v = dict(zip(AngularLaw().names, values, strict=True))
    effective = decay * np.exp(v["log_decay"])
    turns = {}
    for name, start in (("norm", v["log_norm"]), ("lead", v["log_norm"] + v["log_progress_norm"])):
        square, list_ = np.exp(start), []
        for rate in rates:
            list_.append(rate / np.sqrt(square) / 0.05)
            square = (1 - rate * effective) ** 2 * square + rate**2
        turns[name] = np.array(list_)
    w, lead, c = turns["norm"], turns["lead"], np.exp(v["log_memory"])
    progress = np.sum(lead / (1 + np.exp(v["log_saturation"]) * lead**2)) / 1000
    noise = 0.0
    for k in range(len(w)):
        later = (np.sum(w[k:]) - w[k] / 2) / 1000
        forgotten = (1 + c * w[k] ** -v["calming"] * later) ** -np.exp(v["log_beta"])
        noise += w[k] ** 2 / 1000 * c * forgotten
    return float(
        v["floor"]
        + np.exp(v["log_progress"]) * progress ** -np.exp(v["log_alpha"])
        + np.exp(v["log_noise"]) * noise ** np.exp(v["log_q"])
    )


ANGULAR = np.array([2.7, -0.9, -0.63, -0.6, -1.0, 4.8, 0.38, 0.57, -7.1, 0.7, -0.85, -0.3])


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_angular_law_is_its_formula(name: str, decay: float) -> None:
    history, law = HISTORIES[name], AngularLaw()
    for step in (500, 3000):
        ours = law.losses(ANGULAR, law.prepare([Case(history, step)], decay))[0]
        assert ours == pytest.approx(
            angular_by_hand(ANGULAR, history.rates[:step], decay), abs=3e-4
        )


def test_angle_settles_at_the_equilibrium_of_weight_decay() -> None:
    """sqrt(2 eta lambda) per update (Kosson et al. 2023), from above and from below."""
    rate, decay = 1e-3, 0.1
    for initial in (1e-4, 1e-1):
        law = AngularLaw()
        ready = law.prepare([Case(History(np.full(100_000, rate)), 100_000)], decay)
        turns = ready.rotation.turns(decay, initial)[ready.stretches.lengths > 0]
        assert turns[-1] * 0.05 == pytest.approx(np.sqrt(2 * rate * decay), rel=1e-3)


@pytest.mark.parametrize("name", HISTORIES)
def test_multi_power_law_is_its_formula(name: str) -> None:
    law, history = MultiPowerLaw(), HISTORIES[name]
    values = np.array([2.6, -0.5, -0.7, -1.5, 1.0, -0.7, 0.5])
    v = named(law, values)
    rates = history.rates / 1e-3
    falls = np.maximum(rates[:-1] - rates[1:], 0)
    later = np.cumsum(rates[::-1])[::-1][1:] / 1000
    x = np.exp(v["log_C"]) * rates[1:] ** -v["gamma"] * later
    drop = np.sum(falls * (1 - (1 + x) ** -np.exp(v["log_beta"])))
    total = np.sum(rates) / 1000
    by_hand = v["floor"] + np.exp(v["log_A"]) * total ** -np.exp(v["log_alpha"])
    by_hand -= np.exp(v["log_B"]) * drop
    ours = law.losses(values, law.prepare([Case(history, history.total)], 0.1))[0]
    assert ours == pytest.approx(by_hand, abs=1e-3)


def test_convex_law_is_a_power_law_of_the_bound() -> None:
    law, values = ConvexLaw(), np.array([2.0, -0.5, -1.0, -0.9, -0.8])
    cases = [Case(h, step) for h in HISTORIES.values() for step in (700, 3000)]
    ours = law.losses(values, law.prepare(cases, 0.1))
    for case, loss in zip(cases, ours, strict=True):
        terms = last_iterate(case.history.rates[: case.step])
        by_hand = 2.0 + np.exp(-0.5) * (terms.distance / 0.02) ** np.exp(-1.0)
        by_hand += np.exp(-0.9) * (terms.noise / 0.005) ** np.exp(-0.8)
        assert loss == pytest.approx(by_hand, rel=1e-9)


@given(st.integers(1, 5000), st.integers(0, 2**31))
def test_stretches_keep_updates_and_area(step: int, seed: int) -> None:
    rates = np.random.default_rng(seed).uniform(0, 1e-2, 5000)
    lengths, means = History(rates).stretches(step)
    assert lengths.shape == means.shape == (STRETCHES,)
    assert lengths.sum() == step
    assert lengths @ means == pytest.approx(rates[:step].sum(), rel=1e-9)


def test_a_million_updates_cost_as_a_thousand() -> None:
    """The same shape of schedule, cut into as many stretches, whatever its length."""
    law = AngularLaw()
    ready = law.prepare([Case(wsd(1_000_000, 200_000), 1_000_000)], 0.1)
    assert ready.stretches.rates.shape == (1, STRETCHES)
    assert np.isfinite(law.losses(ANGULAR, ready)).all()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([], "one rate per update"),
        ([[1e-3]], "one rate per update"),
        ([1e-3, -1e-3], r"rates\[1\]: -0.001"),
        ([1e-3, float("nan")], r"rates\[1\]: nan"),
        ([0.0, 0.0], "all are 0"),
    ],
)
def test_bad_rates_are_told(rates: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        History(np.array(rates))


@pytest.mark.parametrize("step", [0, 3001])
def test_a_step_outside_is_told(step: int) -> None:
    with pytest.raises(UserError, match="has updates 1 to 3000"):
        Case(HISTORIES["trunk"], step)
