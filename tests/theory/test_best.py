"""Best schedules: a certificate, a general optimiser, and schedules that should not be better."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from llm_pretrain.errors import UserError
from llm_pretrain.theory.best import best_cooldown, best_falling
from llm_pretrain.theory.bound import Array, last_iterate
from llm_pretrain.theory.named import parse


def bound(rates: Array) -> float:
    return last_iterate(rates).optimal_bound


def gap(rates: Array) -> float:
    """At most how far the bound of rates that never rise is above the least, relative to it.

    Rates of sum 1: the noise F is convex, so no schedule e is below F + grad F (e - rates), and of
    that the least over falling rates is at a constant rate on some first updates. The bound at its
    best rate is proportional to sqrt(F).
    """
    e = rates / rates.sum()
    rest = np.cumsum(e[::-1])[::-1]
    value = float((e[:-1] ** 2 / rest[1:]).sum() + e[-1])
    gradient = np.append(2 * e[:-1] / rest[1:], 1.0)
    gradient[1:] -= np.cumsum((e[:-1] / rest[1:]) ** 2)
    least = value + float((np.cumsum(gradient) / np.arange(1, len(e) + 1)).min() - gradient @ e)
    return float(np.sqrt(value / least)) - 1


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 100, 10_000])
def test_no_falling_schedule_is_better(total: int) -> None:
    best = best_falling(total)
    assert best.shape == (total,)
    assert best[0] == 1
    assert np.all(np.diff(best, append=0) <= 0)
    assert gap(best) < 1e-12


def test_the_certificate_tells_what_is_not_the_best() -> None:
    best, linear = (values.multipliers(100) for values in (parse("wsd"), parse("linear")))
    for rates in (best, linear):
        assert gap(rates) >= bound(rates) / bound(best_falling(100)) - 1 > 0.01


def optimised(total: int, plateau: int) -> float:
    """The least bound of falling rates, the first `plateau` equal, by sequential programming.

    The unknowns are the square roots of the falls from each update to the next.
    """

    def rates(roots: Array) -> Array:
        falls = np.concatenate([np.zeros(plateau - 1), roots**2])
        return np.cumsum(falls[::-1])[::-1]

    begin = np.ones(total - plateau + 1)
    options = {"maxiter": 2000, "ftol": 1e-15}
    found = minimize(lambda x: np.log(bound(rates(x))), begin, method="SLSQP", options=options)
    return float(np.exp(found.fun))


@pytest.mark.parametrize("total", [4, 9, 20])
def test_an_optimiser_ends_at_the_same_bound(total: int) -> None:
    assert bound(best_falling(total)) == pytest.approx(optimised(total, 1), rel=1e-6)


@pytest.mark.parametrize("total,cooldown", [(12, 4), (20, 5), (30, 15)])
def test_the_best_cooldown(total: int, cooldown: int) -> None:
    best = best_cooldown(total, cooldown)
    assert np.all(best[: total - cooldown] == 1)
    assert bound(best) == pytest.approx(optimised(total, total - cooldown), rel=1e-6)


@given(st.integers(10, 300), st.integers(1, 299), st.randoms(use_true_random=False))
def test_other_cooldowns_are_no_better(total: int, cooldown: int, draw: Random) -> None:
    cooldown = min(cooldown, total - 1)
    best = best_cooldown(total, cooldown)
    tail = np.sort([0.01 + draw.random() for _ in range(cooldown)])[::-1]
    moved = best.copy()
    moved[total - cooldown :] = 0.9 * moved[total - cooldown :] + 0.1 * tail
    for other in (moved, np.concatenate([np.ones(total - cooldown), tail])):
        assert bound(best) <= bound(other) * (1 + 1e-9)
    for shape in ("linear", "1-sqrt", "cosine"):
        named = parse(f"wsd-{shape}", {"cooldown": {"length": f"{cooldown} steps"}})
        assert bound(best) <= named.terms(total).optimal_bound * (1 + 1e-9)


def test_how_near_known_schedules_come() -> None:
    """At 10,000 steps: linear decay, 1-sqrt as a whole run, and 20% cooldowns of both shapes."""
    total, least = 10_000, bound(best_falling(10_000))
    above = {
        t: parse(t).terms(total).optimal_bound / least - 1 for t in ("linear", "wsd-100%-1-sqrt")
    }
    assert above["linear"] == pytest.approx(1.266e-4, rel=1e-3)
    assert above["wsd-100%-1-sqrt"] == pytest.approx(7.05e-3, rel=1e-3)
    shaped = best_cooldown(total, 2000)
    assert shaped[8000] == pytest.approx(0.5996, abs=1e-4)
    part = {
        t: parse(t).terms(total).optimal_bound / bound(shaped) - 1 for t in ("wsd", "wsd-1-sqrt")
    }
    assert part["wsd"] == pytest.approx(1.946e-2, rel=1e-3)
    assert part["wsd-1-sqrt"] == pytest.approx(3.30e-3, rel=1e-2)


def test_bad_lengths() -> None:
    with pytest.raises(UserError, match="steps: 0"):
        best_falling(0)
    for cooldown in (0, 11):
        with pytest.raises(UserError, match=f"cooldown: {cooldown} updates of 10"):
            best_cooldown(10, cooldown)
