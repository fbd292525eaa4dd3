"""The fit finds what made a curve, says how sure it is, and is not led astray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_pretrain.errors import UserError
from llm_pretrain.theory.bound import Array, curve
from llm_pretrain.theory.fit import NAMES, Fit, Observed, fit
from llm_pretrain.theory.named import parse

TOTAL = 2000
LR = 1e-3
OFFSET, DISTANCE, POWER, EXPONENT, FLOOR = 2.5, 0.5, 20.0, -0.4, 2.0
STEPS = np.arange(100, TOTAL + 1, 40)


def made(
    name: str = "wsd-20%", noise: float = 0.0, total: int = TOTAL, lr: float = LR, seed: int = 0
) -> Observed:
    """Losses from the formula itself, step by step, with scatter of the given size."""
    rates = lr * parse(name).multipliers(total)
    norms = POWER * np.arange(1, total + 1) ** EXPONENT + FLOOR
    steps = np.arange(100, total + 1, 40)
    losses = OFFSET + curve(rates, steps, norms=norms, distance=DISTANCE).at(1.0)
    draw = np.random.default_rng(seed)
    return Observed(rates, steps, losses * np.exp(noise * draw.standard_normal(len(steps))))


def largest(found: Fit, run: Observed) -> float:
    return float(np.max(np.abs(found.predict(run) - run.losses)))


def test_it_fits_a_curve_and_predicts_another() -> None:
    found = fit([made()], draws=0)
    assert largest(found, made()) < 2e-4
    assert largest(found, made("cosine")) < 3e-3
    assert largest(found, made("wsd-40%-1-sqrt", total=3000, lr=2e-3)) < 0.05
    assert found.value("offset") == pytest.approx(OFFSET, abs=0.02)
    assert found.value("distance") == pytest.approx(DISTANCE, rel=0.1)
    assert found.scatter < 1e-4


def test_several_runs_say_more_than_one() -> None:
    runs = [made("constant"), made("wsd-20%", total=1500), made("cosine", lr=2e-3)]
    found = fit(runs, draws=0)
    assert all(largest(found, run) < 3e-4 for run in runs)
    assert largest(found, made("wsd-40%-1-sqrt", total=3000, lr=2e-3)) < 1e-3


def test_stretches_of_steps_stand_for_their_steps() -> None:
    """The prediction against the bound with the fitted norm of every single step."""
    run = made()
    values = np.array([OFFSET, DISTANCE, 3.0, -0.01, POWER, EXPONENT, FLOOR])
    steps = np.arange(1, TOTAL + 1)
    norms = 3.0 * np.exp(-0.01 * steps) + POWER * steps**EXPONENT + FLOOR
    exact = OFFSET + curve(run.rates, run.steps, norms=norms, distance=DISTANCE).at(1.0)
    predicted = Fit(values, values[None], 0.0).predict(run)
    assert float(np.max(np.abs(predicted - exact))) < 2e-4


def test_one_bad_evaluation_moves_little() -> None:
    run = made(noise=5e-4)
    bad = run.losses.copy()
    bad[20] *= 1.2
    spoiled = fit([Observed(run.rates, run.steps, bad)], draws=0)
    assert largest(spoiled, made()) < 4e-3


def test_the_band_holds_the_curve_about_as_often_as_it_says() -> None:
    held = []
    for seed in range(3):
        run = made(noise=2e-3, seed=seed)
        found = fit([run], draws=20, seed=seed)
        low, high = found.band(run, 0.8)
        truth = made().losses
        held.append(float(np.mean((low <= truth) & (truth <= high))))
        assert found.interval("offset")[0] <= found.value("offset") <= found.interval("offset")[1]
        assert np.all(low <= high)
    assert 0.5 < float(np.mean(held)) < 0.98


def test_measured_norms_replace_the_model() -> None:
    run = made("cosine")
    norms = POWER * np.arange(1, TOTAL + 1) ** EXPONENT + FLOOR
    found = fit([Observed(run.rates, run.steps, run.losses, norms / 7)], draws=0)
    assert found.value("floor") == pytest.approx(7, rel=1e-3)
    assert found.value("distance") == pytest.approx(DISTANCE, rel=1e-3)
    assert [found.value(name) for name in NAMES[2:6]] == [0, 0, 0, 0]


def test_a_real_curve() -> None:
    """Its neighbours differ by more than the bound does from it."""
    data = json.loads(Path(__file__).with_name("real_curve.json").read_text())
    warmup = {"warmup": "300 steps", "warmup_shape": "cosine", "inclusive": True}
    rates = 1e-3 * parse("cosine-10%", warmup).multipliers(50_000)
    steps, losses = np.array(data["step"]), np.array(data["loss"])
    found = fit([Observed(rates, steps, losses)], draws=0)
    assert found.scatter < 0.003
    assert 2.7 < found.value("offset") < losses[-1] < 3


def test_the_same_seed_gives_the_same_fit() -> None:
    run = made(noise=1e-3)
    one, other = fit([run], draws=3, seed=1), fit([run], draws=3, seed=1)
    assert np.array_equal(one.draws, other.draws)
    assert np.array_equal(one.values, other.values)


def replaced(name: str, values: Array) -> Observed:
    run = made()
    return Observed(**{**vars(run), name: values})


@pytest.mark.parametrize(
    "runs,words",
    [
        ([], ["runs: needs at least one"]),
        ([made(), replaced("norms", np.ones(TOTAL))], ["norms for all"]),
        ([replaced("norms", np.ones(5))], ["norms: 5 for 2000"]),
        ([replaced("losses", np.ones(5))], ["losses: 5 for 48"]),
        ([replaced("losses", np.append(np.ones(47), np.nan))], ["losses[47]: nan"]),
        ([replaced("rates", np.append(np.ones(TOTAL - 1), 0.0))], ["rates[1999]: 0", "leave"]),
        ([Observed(np.ones(100), np.array([1, 2]), np.ones(2))], ["2 losses", "14 or more"]),
        ([replaced("steps", STEPS + 30)], ["at: 130 to 2010"]),
    ],
)
def test_bad_input(runs: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        fit(runs)
    for word in words:
        assert word in str(error.value)
