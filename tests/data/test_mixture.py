"""The mixture: exact quotas, and never more than one sequence away from them."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pretrain.data.mixture import PERIOD, Mixture, quantise
from llm_pretrain.errors import UserError

weights_of = st.lists(
    st.floats(1e-6, 1e6, allow_nan=False, allow_infinity=False), min_size=1, max_size=8
).map(lambda values: {f"s{i}": value for i, value in enumerate(values)})


@settings(max_examples=40, deadline=None)
@given(weights=weights_of)
def test_every_prefix_keeps_to_the_quota(weights: dict[str, float]) -> None:
    mixture = Mixture(weights)
    n = 12_345
    source, position = mixture.locate(np.arange(n))
    t = np.arange(1, n + 1)
    period = sum(mixture.quotas)
    for index, quota in enumerate(mixture.quotas):
        mine = source == index
        count = np.cumsum(mine)
        assert np.abs(count * period - t * quota).max() < period  # less than one sequence
        assert np.array_equal(position[mine], np.arange(mine.sum()))


@settings(max_examples=40, deadline=None)
@given(weights=weights_of, slots=st.integers(0, 25_000))
def test_consumed_counts_the_prefix(weights: dict[str, float], slots: int) -> None:
    mixture = Mixture(weights)
    source, _ = mixture.locate(np.arange(slots))
    expected = np.bincount(source, minlength=len(weights)).tolist()
    assert mixture.consumed(slots) == expected


@settings(max_examples=100, deadline=None)
@given(weights=weights_of)
def test_weights_are_rounded_by_less_than_a_slot(weights: dict[str, float]) -> None:
    quotas = quantise(weights)
    scale = PERIOD // sum(quotas)
    assert scale * sum(quotas) == PERIOD
    total = sum(Fraction(w) for w in weights.values())
    starved = sum(Fraction(w) * PERIOD < total for w in weights.values())
    for quota, weight in zip(quotas, weights.values(), strict=True):
        assert quota >= 1
        # Sources below one slot get one; the others make room for them.
        assert abs(quota * scale - Fraction(weight) * PERIOD / total) < 1 + starved


def test_far_slots_are_located_without_counting() -> None:
    mixture = Mixture({"a": 0.7, "b": 0.3})
    far = 10**15
    source, position = mixture.locate(np.arange(far, far + 10))
    near, first = mixture.locate(np.arange(10))
    assert source.tolist() == near.tolist()
    expected = [p + (far * (7, 3)[s]) // 10 for s, p in zip(near, first, strict=True)]
    assert position.tolist() == expected
    assert mixture.consumed(far) == [7 * far // 10, 3 * far // 10]


def test_only_proportions_matter() -> None:
    assert quantise({"a": 2.0, "b": 6.0}) == quantise({"a": 0.1, "b": 0.3}) == [1, 3]
    assert quantise({"only": 0.123}) == [1]
    thirds = quantise({"a": 1.0, "b": 1.0, "c": 1.0})
    assert thirds == [3334, 3333, 3333]


def test_never_changes() -> None:
    # Part of the order of data of every run: this list is for ever.
    source, _ = Mixture({"a": 5.0, "b": 3.0, "c": 2.0}).locate(np.arange(10))
    assert source.tolist() == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2]


def test_refuses_what_cannot_be_mixed() -> None:
    for weights in ({}, {"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}):
        with pytest.raises(UserError, match=r"data\.sources"):
            Mixture(weights)
    with pytest.raises(UserError, match="10000"):
        Mixture({str(i): 1.0 for i in range(PERIOD + 1)})
