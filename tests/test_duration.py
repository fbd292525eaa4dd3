"""Durations: what is read, what is refused, and exact arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.duration import Duration


@pytest.mark.parametrize(
    "text,unit,amount",
    [
        ("2000 steps", "steps", 2000),
        ("1 step", "steps", 1),
        ("200k steps", "steps", 200_000),
        ("10B tokens", "tokens", 10**10),
        ("1.5M tokens", "tokens", 1_500_000),
        ("15T tokens", "tokens", 15 * 10**12),
        ("20%", "percent", 20),
        ("0.5 %", "percent", Fraction(1, 2)),
        (" 10steps ", "steps", 10),
    ],
)
def test_read(text: str, unit: str, amount: int) -> None:
    assert Duration.parse(text) == Duration(Fraction(amount), unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["20", 20, 0.2, None, "-5 steps", "5 epochs", "1.5 steps", "20k%", "", "steps", "1e3 steps"],
)
def test_refused(text: object) -> None:
    with pytest.raises(ValueError, match="got "):
        Duration.parse(text)


@given(st.integers(0, 10**15), st.sampled_from(["steps", "tokens"]))
def test_written_and_read_again(amount: int, unit: str) -> None:
    duration = Duration(Fraction(amount), unit)  # type: ignore[arg-type]
    assert Duration.parse(str(duration)) == duration


@given(st.integers(0, 10_000), st.integers(1, 10**7))
def test_percentages_are_exact(hundredths: int, whole: int) -> None:
    duration = Duration.parse(f"{hundredths // 100}.{hundredths % 100:02d}%")
    assert duration.of(whole) == hundredths * whole // 10_000
    assert Duration.parse(str(duration)) == duration
