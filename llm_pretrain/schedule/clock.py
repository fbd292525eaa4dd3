"""Steps and tokens of a run, counted from step 0 of its oldest ancestor."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_pretrain.duration import Duration


@dataclass(frozen=True)
class TokenClock:
    """Converts between steps and tokens when the batch changed along the lineage.

    `starts[i]` is the first step that trains with `rates[i]` tokens per step; starts[0] is 0.
    """

    starts: Sequence[int]
    rates: Sequence[int]

    def tokens_at(self, step: int) -> int:
        """Tokens consumed by the first `step` updates."""
        total = 0
        for start, end, rate in self._stretches():
            if step <= start:
                break
            total += (min(step, end) if end is not None else step) * rate - start * rate
        return total

    def step_at(self, tokens: int) -> int:
        """The first step by which at least `tokens` have been consumed."""
        seen = 0
        for start, end, rate in self._stretches():
            if end is None or seen + (end - start) * rate >= tokens:
                return start + -(-(tokens - seen) // rate)
            seen += (end - start) * rate
        raise AssertionError("the last stretch has no end")

    def point(self, position: Duration) -> int:
        """The step of an absolute position. Raises ValueError for a percentage."""
        if position.unit == "percent":
            raise ValueError(f"'{position}' has no whole to be a share of; use steps or tokens")
        if position.unit == "tokens":
            return self.step_at(int(position.amount))
        return int(position.amount)

    def length(self, duration: Duration, total: int) -> int:
        """A length in steps at the newest batch: tokens rounded up, percent of `total` down."""
        if duration.unit == "percent":
            return duration.of(total)
        if duration.unit == "tokens":
            return -(-int(duration.amount) // self.rates[-1])
        return int(duration.amount)

    def _stretches(self) -> list[tuple[int, int | None, int]]:
        ends: list[int | None] = [*self.starts[1:], None]
        return list(zip(self.starts, ends, self.rates, strict=True))
