"""Rates moved from one schedule to another, against the authors' numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.errors import UserError
from llm_pretrain.theory.named import PRESETS, parse
from llm_pretrain.theory.transfer import terms_of, transfer
from tests.theory.formulas import REFERENCE


@pytest.mark.parametrize("key", REFERENCE["cooldowns"])
def test_cooldown_lengths(key: str) -> None:
    """ln gamma*(the whole run) - ln gamma*(that share of it), and what they are made of."""
    steps, shape, share = key.split("_")
    rate, bound, logarithm = REFERENCE["cooldowns"][key]
    shape = {"sqrt": "1-sqrt"}.get(shape, shape)
    name = f"wsd-{100 * float(share):g}%-{shape}" if float(share) else "constant"
    part, whole = (parse(text).terms(int(steps)) for text in (name, f"wsd-100%-{shape}"))
    assert part.optimal_rate == pytest.approx(rate, rel=1e-5)
    assert part.optimal_bound == pytest.approx(bound, rel=1e-5)
    assert math.log(transfer(1.0, part, whole)) == pytest.approx(logarithm, abs=1e-5)


@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(sorted(PRESETS)),
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(1e-6, 10),
)
def test_there_and_back(old: str, new: str, before: int, after: int, lr: float) -> None:
    a, b = parse(old).terms(before), parse(new).terms(after)
    assert transfer(transfer(lr, a, b), b, a) == pytest.approx(lr, rel=1e-12)
    assert transfer(lr, a, a) == pytest.approx(lr, rel=1e-15)


def test_the_unit_of_the_rate_does_not_matter() -> None:
    named = parse("wsd", {"warmup": "5 steps"})
    assert terms_of(named.schedule(200, lr=3e-4), 3e-4).optimal_rate == pytest.approx(
        named.terms(200).optimal_rate
    )


@pytest.mark.parametrize("lr", [0.0, -1e-3, math.nan, math.inf])
def test_a_rate_is_positive(lr: float) -> None:
    terms = parse("wsd").terms(10)
    with pytest.raises(UserError, match="lr: "):
        transfer(lr, terms, terms)
