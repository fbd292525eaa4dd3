"""Final losses side by side, against numbers taken from the authors' logs by other means."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_pretrain.reanalyse.comparisons import (
    cosine_and_wsd,
    model,
    repeats,
    sqrt_and_linear,
)
from llm_pretrain.reanalyse.load import Curve, PaperRun, load
from llm_pretrain.reanalyse.rates import best_rates, fit_rate

# Perplexities of one cosine (to 10 %) and one WSD run (20 % linear, half the rate) each.
PERPLEXITIES = {
    ("33M", 3000): (38.80, 39.12),
    ("33M", 7000): (33.01, 33.04),
    ("53M", 3650): (33.69, 33.80),
    ("53M", 7500): (29.45, 29.37),
    ("60M", 7500): (28.33, 28.29),
    ("60M", 12500): (26.34, 26.22),
    ("93M", 10000): (25.00, 24.88),
    ("93M", 17500): (23.08, 22.96),
    ("124M", 15000): (22.65, 22.71),
    ("124M", 25000): (21.14, 21.11),
    ("151M", 25000): (20.27, 20.29),
    ("151M", 37500): (19.34, 19.31),
    ("210M", 37500): (18.12, 18.10),
    ("210M", 50000): (17.62, 17.52),
}
# 124M, 50k steps, last 20 %: linear and 1-sqrt.
SHAPES = {
    5e-4: (2.9728, 2.9695),
    1e-3: (2.9660, 2.9599),
    2e-3: (2.9742, 2.9646),
    1e-4: (3.0646, 3.0668),
}
# 124M, 50k steps: final losses at RATES by cooldown, and the best rate from another fit of
# A / g + B g + C; two of the rates and one cooldown are in logs that the file leaves out.
RATES = (1e-4, 5e-4, 1e-3, 2e-3, 3e-3)
SWEEP = {
    0.1: ((3.0659, 2.9849, 2.9825, 2.9954, 3.0176), 0.00074, 0.818),
    0.2: ((3.0646, 2.9728, 2.9660, 2.9742, 2.9941), 0.00086, 0.668),
    0.4: ((3.0729, 2.9659, 2.9548, 2.9579, 2.9743), 0.00105, 0.470),
    0.6: ((3.0879, 2.9670, 2.9529, 2.9513, 2.9668), 0.00123, 0.311),
    0.8: ((3.1087, 2.9743, 2.9550, 2.9523, 2.9656), 0.00143, 0.163),
    0.9: ((3.1218, 2.9771, 2.9580, 2.9532, 2.9644), 0.00157, 0.067),
    0.994: ((3.1347, 2.9812, 2.9605, 2.9535, 2.9654), 0.00168, 0.0),
}
# ln of the theory's best rate for a linear decay from the start over that for a cooldown, T = 6400.
THEORY = {0.1: 0.775, 0.2: 0.665, 0.4: 0.499, 0.6: 0.345, 0.8: 0.183, 0.9: 0.095}


@pytest.fixture(scope="module")
def runs() -> list[PaperRun]:
    """All runs, without their curves."""
    return load(Path(__file__).parent / "finals.json")


def test_cosine_against_wsd(runs: list[PaperRun]) -> None:
    found = cosine_and_wsd(runs)
    single = {
        (r.model, r.total): r for r in found if r.cosine.rates == 1 and r.sample == "whole set"
    }
    assert single.keys() == PERPLEXITIES.keys()
    for key, (cosine, wsd) in PERPLEXITIES.items():
        # The authors' perplexity is 2.71828 to the power of the loss; it has four digits.
        assert single[key].cosine.loss == pytest.approx(math.log(cosine), abs=3e-4)
        assert single[key].wsd.loss == pytest.approx(math.log(wsd), abs=3e-4)
        assert single[key].difference == pytest.approx(math.log(wsd / cosine), abs=6e-4)
        assert single[key].cosine.peak == 2 * single[key].wsd.peak


def test_the_best_of_several_rates_is_kept(runs: list[PaperRun]) -> None:
    swept = {r.total: r for r in cosine_and_wsd(runs) if r.cosine.rates > 1}
    last = swept[50_000]
    assert set(swept) == {15_000, 25_000, 35_000, 50_000}
    assert (last.cosine.loss, last.cosine.peak) == (pytest.approx(2.9819, abs=5e-5), 1e-3)
    assert last.wsd.loss == pytest.approx(2.9660, abs=5e-5)
    assert last.cosine_to_zero is not None
    # The diverged cosine at 5e-3 counts neither as best nor as tried.
    assert (last.cosine_to_zero.peak, last.cosine_to_zero.rates) == (2e-3, 4)
    assert last.cosine_to_zero.loss == pytest.approx(2.9534, abs=5e-5)


def test_runs_without_a_final_loss_are_compared_on_the_same_batches(runs: list[PaperRun]) -> None:
    few = {r.total: r for r in cosine_and_wsd(runs) if r.sample == "32 batches"}
    expected = {22_222: (19.415, 19.396), 33_333: (18.363, 18.375), 44_444: (17.843, 17.770)}
    assert few.keys() == expected.keys()
    for total, (cosine, wsd) in expected.items():
        # Those perplexities are on the whole set: the difference agrees to the noise of 32 batches.
        assert few[total].difference == pytest.approx(math.log(wsd / cosine), abs=2.5e-3)


def test_a_loss_on_the_way_to_a_longer_horizon_is_no_shorter_run(runs: list[PaperRun]) -> None:
    long = next(r for r in runs if r.kind == "cosine" and r.size == (12, 640) and r.total == 25_000)
    assert 10_000 in long.finals.steps
    others = [
        r for r in runs if r.size == (12, 640) and not (r.kind == "cosine" and r.total == 10_000)
    ]
    assert {r.total for r in cosine_and_wsd(others)} == {17_500}


def test_sqrt_against_linear(runs: list[PaperRun]) -> None:
    found = {r.peak: r for r in sqrt_and_linear(runs) if r.total == 50_000}
    assert found.keys() == SHAPES.keys()
    for peak, (linear, sqrt) in SHAPES.items():
        assert (found[peak].linear, found[peak].sqrt) == pytest.approx((linear, sqrt), abs=6e-5)
        assert found[peak].difference == pytest.approx(sqrt - linear, abs=1.2e-4)
        assert found[peak].cooldown == 10_000


def test_repeats(runs: list[PaperRun]) -> None:
    found = repeats(runs)
    # 124M: cosine at 15k and 25k, WSD at 15k and 25k, each run for both papers.
    gaps = [3.120253 - 3.119655, 3.052637 - 3.050982, 3.122699 - 3.1221, 3.049664 - 3.0495]
    assert found.pairs == 4
    assert found.largest == pytest.approx(max(gaps), abs=2e-4)
    assert found.mean == pytest.approx(sum(gaps) / 4, abs=2e-4)
    # Two runs with normal noise of this deviation differ by 0.0015 on average.
    assert found.deviation * 2 / math.sqrt(math.pi) == pytest.approx(0.0015, abs=5e-5)
    assert found.clear == pytest.approx(2 * math.sqrt(2) * found.deviation)
    one = next(run for run in runs if run.kind == "cosine")
    assert repeats([one, one]).pairs == 0
    assert repeats([one, replace(one, name="again")]).mean == 0


def test_models_have_their_names() -> None:
    assert model((12, 768)) == "124M"
    assert model((3, 64)) == "3 layers of width 64"


def test_fit_of_the_best_rate() -> None:
    logs = {share: float(fit_rate(RATES, losses)[0]) for share, (losses, *_) in SWEEP.items()}
    for share, (_, rate, ratio) in SWEEP.items():
        assert math.exp(logs[share]) == pytest.approx(rate, abs=6e-6)
        assert logs[0.994] - logs[share] == pytest.approx(ratio, abs=3e-3)
    exact = [2e-4 / g + 30 * g + 2.9 for g in RATES]
    best, rest = fit_rate(RATES, exact)
    assert math.exp(best) == pytest.approx(math.sqrt(2e-4 / 30))
    assert np.abs(rest).max() < 1e-12
    assert np.isnan(fit_rate(RATES, [3 - 10 * g for g in RATES])[0])


def test_best_rates_against_the_theory(runs: list[PaperRun]) -> None:
    found = best_rates(runs)
    assert {e.total for e in found.entries} == {15_000, 25_000, 35_000, 50_000}
    for entry in found.entries:
        expected = THEORY[round(entry.share, 3)] - THEORY[0.9]
        assert entry.theory == pytest.approx(expected, abs=0.01)
        assert entry.fitted == [5e-4, 1e-3, 2e-3]
    own = [e for e in found.entries if e.total == 50_000]
    # Three points determine the three numbers of the fit.
    for entry in own:
        losses, *_ = SWEEP[round(entry.share, 3)]
        assert list(entry.losses.values())[:4] == pytest.approx(losses[:4], abs=6e-5)
        expected = math.exp(float(fit_rate(RATES[1:4], losses[1:4])[0]))
        assert entry.rate == pytest.approx(expected, rel=0.03)
        assert entry.rate_range is not None
        assert entry.rate_range[0] < entry.rate < entry.rate_range[1]
    assert [e.rate for e in own] == sorted(e.rate for e in own)
    assert found.slope is not None
    assert found.slope_range is not None
    assert found.slope_range[0] < found.slope < found.slope_range[1]


def test_intervals_of_rates_hold_what_made_the_losses(runs: list[PaperRun]) -> None:
    """Losses made from the formula with the theory's rates: ratios and slope come back."""
    made = []
    for run in runs:
        if run.kind == "cooldown" and run.total == 25_000 and run.shape == "linear" and run.typed:
            best = 1.6e-3 * math.exp(-THEORY[round(run.cooldown / run.total, 3)])
            loss = 3.0 + 0.03 * (best / run.peak + run.peak / best)
            made.append(replace(run, finals=Curve((run.total,), (loss,))))
    found = best_rates(made)
    assert found.slope == pytest.approx(1, abs=0.02)
    assert found.mean_gap == pytest.approx(0, abs=0.01)
    for entry in found.entries:
        assert entry.scatter_all == pytest.approx(0, abs=1e-9)
        assert entry.log_ratio_all == pytest.approx(entry.log_ratio, abs=1e-6)


def test_nothing_to_compare(runs: list[PaperRun]) -> None:
    trunks = [run for run in runs if run.kind == "trunk"]
    assert cosine_and_wsd(trunks) == []
    assert sqrt_and_linear(trunks) == []
    found = best_rates(trunks)
    assert (found.entries, found.slope, found.mean_gap) == ([], None, None)
