"""Runs that are left out of a fit, by name and with the numbers; and those that are not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llm_pretrain.scaling.laws import fit
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.sift import deviation, sift
from llm_pretrain.scaling.words import law
from tests.scaling.known import points


def changed(own: list[Point], i: int, factor: float) -> list[Point]:
    """The same runs, the loss of one multiplied."""
    return [*own[:i], replace(own[i], loss=own[i].loss * factor), *own[i + 1 :]]


def test_a_run_is_left_out_by_name_and_never_silently() -> None:
    own = points()
    bad = {
        "its loss is NaN": {"loss": math.nan},
        "its loss is inf": {"loss": math.inf},
        "its tokens are 0": {"tokens": 0.0},
        "diverged: loss 9, 2.1 times the median": {"loss": 9.0},
    }
    failed = [replace(own[7], run=f"bad {i}", **change) for i, change in enumerate(bad.values())]
    risen = replace(own[7], run="risen", tokens=own[9].tokens, loss=4.5)
    kept, out = sift([*own, *failed, risen])
    assert kept == own
    assert [one.run for one in out] == ["bad 0", "bad 1", "bad 2", "bad 3", "risen"]
    for reason, one in zip(bad, out, strict=False):
        assert one.reason.startswith(reason)
    above = 100 * (4.5 / own[9].loss - 1)
    assert out[-1].reason.startswith(f"noisy: loss 4.5, {above:.3g}% above a robust fit to all")
    found = fit([*own, *failed, risen], draws=20)
    assert found.excluded == tuple(out)
    assert found.points == tuple(own)


def test_a_wide_range_of_sizes_loses_no_run() -> None:
    own = points(sizes=tuple(np.geomspace(1e4, 1e10, 10)), ratios=(1, 5, 20, 100))
    losses = sorted(p.loss for p in own)
    assert losses[-1] > 4 * losses[len(losses) // 2]
    assert sift(own) == (own, [])


@pytest.mark.parametrize("factor", [0.7, 0.97, 1.05, 1.3, 3.0])
@pytest.mark.parametrize("i", [0, 4, 12, 35, 39])
def test_only_the_run_that_is_off_is_left_out(factor: float, i: int) -> None:
    own = points(noise=0.0005)
    kept, out = sift(changed(own, i, factor))
    assert [one.run for one in out] == [own[i].run]
    assert kept == [*own[:i], *own[i + 1 :]]
    word = "diverged" if factor == 3 else "noisy"
    assert out[0].reason.startswith(word)
    assert ("below" if factor < 1 else "above") in out[0].reason or word == "diverged"


def test_one_size_is_judged_by_its_own_law() -> None:
    own = points(sizes=[1e8], ratios=[2, 4, 8, 16, 32, 64, 128], noise=0.0005)
    kept, out = sift(changed(own, 3, 1.1))
    assert [one.run for one in out] == [own[3].run]
    assert len(kept) == 6
    _, out = sift(changed(own, 6, 2.5))
    assert [one.run for one in out] == [own[6].run]
    assert out[0].reason.startswith("diverged: loss")


def test_runs_that_only_scatter_are_kept() -> None:
    left_out = 0
    for seed in range(20):
        left_out += len(sift(points(noise=0.01, seed=seed))[1])
    assert left_out == 0


def test_the_farthest_run_is_named_even_where_it_is_kept() -> None:
    own = changed(points(), 17, 1.004)
    found = fit(own, draws=20)
    assert not found.excluded
    assert found.parametric is not None
    assert found.parametric.worst.run == own[17].run
    assert found.parametric.worst.error == pytest.approx(own[17].loss * (1 - 1 / 1.004), rel=0.05)
    assert f"nats at worst ({own[17].run})" in law(found)[0]


def test_the_deviation_is_that_of_normal_errors_and_not_of_what_is_fitted_through() -> None:
    errors = 0.01 * np.random.default_rng(0).standard_normal(20_000)
    assert deviation(errors, 5) == pytest.approx(0.01, rel=0.03)
    assert deviation(np.array([0, 0, 0, 0, 0, 0.01, 0.02, 0.03]), 5) == pytest.approx(0.02 / 0.6745)
