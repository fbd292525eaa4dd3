"""Steps and tokens when the batch changes along the lineage, against a plain loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.duration import Duration
from llm_pretrain.schedule.clock import TokenClock

stretches = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=4)


def clock(parts: list[tuple[int, int]]) -> tuple[TokenClock, list[int]]:
    """A clock, and the tokens seen after 0, 1, 2, ... steps by counting."""
    starts, position = [], 0
    for length, _ in parts:
        starts.append(position)
        position += length
    seen = [0]
    for length, rate in parts:
        for _ in range(length):
            seen.append(seen[-1] + rate)
    return TokenClock(starts, [rate for _, rate in parts]), seen


@given(stretches)
def test_tokens_and_steps(parts: list[tuple[int, int]]) -> None:
    ours, seen = clock(parts)
    for step, tokens in enumerate(seen):
        assert ours.tokens_at(step) == tokens
    for tokens in range(1, seen[-1] + 1):
        first = next(step for step, total in enumerate(seen) if total >= tokens)
        assert ours.step_at(tokens) == first


def test_lengths_use_the_newest_batch() -> None:
    ours = TokenClock([0, 10], [100, 7])
    assert ours.length(Duration.parse("15 tokens"), 50) == 3
    assert ours.length(Duration.parse("30%"), 50) == 15
    assert ours.point(Duration.parse("1014 tokens")) == 12
    with pytest.raises(ValueError, match="share of"):
        ours.point(Duration.parse("20%"))
