"""The science of the report: what each cooldown gained, and what it cost. Pure functions."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_pretrain.report.data import Evaluation, RunData, evaluations_until, lineage

CLEAR = 3.0
"""A difference of more standard errors than this is called clear."""


@dataclass(frozen=True)
class Comparison:
    """A run's last loss against another run's."""

    other: RunData
    value: Evaluation
    """The other run's loss; at the same tokens when `equal_tokens`."""
    gain: float
    """The other's loss minus the run's, in nats per token: positive is better."""
    stderr: float
    equal_tokens: bool

    @property
    def sigmas(self) -> float:
        """The gain in standard errors."""
        if self.stderr == 0:
            return math.copysign(math.inf, self.gain) if self.gain else 0.0
        return self.gain / self.stderr

    @property
    def clear(self) -> bool:
        """Whether the run is lower by more than three standard errors."""
        return self.sigmas > CLEAR


@dataclass(frozen=True)
class Gain:
    """What a cooldown ended with, and how that compares."""

    run: RunData
    end: Evaluation | None
    """Its evaluation at its last step; None before."""
    trunk: Comparison | None
    reference: Comparison | None
    note: str = ""
    """Why there is no comparison with the trunk, or why it is not at equal tokens."""
    reference_note: str = ""


def interpolate(curve: Sequence[Evaluation], tokens: int) -> Evaluation | None:
    """The loss at `tokens` on the line between the evaluations around it; None outside of them.

    Neighbours see the same held-out sequences, so their errors are taken as fully correlated: the
    standard error is interpolated like the loss, which never understates it.
    """
    for a, b in pairwise(curve):
        if a.tokens <= tokens <= b.tokens and a.tokens < b.tokens:
            w = (tokens - a.tokens) / (b.tokens - a.tokens)
            return Evaluation(
                step=round(a.step + w * (b.step - a.step)),
                tokens=tokens,
                loss=(1 - w) * a.loss + w * b.loss,
                stderr=(1 - w) * a.stderr + w * b.stderr,
            )
    return next((e for e in curve if e.tokens == tokens), None)


def compare(
    own: Evaluation, other: RunData, value: Evaluation, *, equal_tokens: bool
) -> Comparison:
    """The gain of `own` over `value` of the run `other`, errors added in quadrature."""
    gain = value.loss - own.loss
    return Comparison(other, value, gain, math.hypot(own.stderr, value.stderr), equal_tokens)


def trunk_of(run: RunData) -> RunData | None:
    """The nearest ancestor that trained at a constant rate."""
    return next((r for r in reversed(lineage(run)[:-1]) if r.steady), None)


def gains(runs: Sequence[RunData]) -> list[Gain]:
    """One entry for each branch that ends in a cooldown, in the order of `runs`."""
    return [gain_of(run, runs) for run in runs if run.kind == "cooldown"]


def gain_of(run: RunData, runs: Sequence[RunData]) -> Gain:
    """A cooldown against its trunk at equal tokens, and against the best reference as long."""
    end = next((e for e in run.evaluations if e.step == run.total), None)
    if end is None:
        note = f"{run.status} at step {run.done:,} of {run.total:,}"
        if run.done >= run.total:
            note = "no evaluation at its end"
        return Gain(run, None, None, None, note)
    trunk, note = _against_trunk(run, end)
    reference, reference_note = _against_reference(run, end, runs)
    return Gain(run, end, trunk, reference, note, reference_note)


def _against_trunk(run: RunData, end: Evaluation) -> tuple[Comparison | None, str]:
    trunk = trunk_of(run)
    if trunk is None:
        orphan = lineage(run)[0].orphan
        return None, "parent not found" if orphan else "no ancestor at a constant rate"
    if trunk.held_out != run.held_out:
        return None, f"evaluates on other held-out text than {trunk.label}: not comparable"
    curve = evaluations_until(trunk, trunk.steady_until)
    if not curve or curve[0].tokens > end.tokens:
        return None, f"{trunk.label} has no evaluation as early"
    value = interpolate(curve, end.tokens)
    if value is not None:
        return compare(end, trunk, value, equal_tokens=True), ""
    last = curve[-1]
    return compare(
        end, trunk, last, equal_tokens=False
    ), f"trunk ends earlier at {last.tokens:,} tokens"


def _against_reference(
    run: RunData, end: Evaluation, runs: Sequence[RunData]
) -> tuple[Comparison | None, str]:
    """Against the best run that decays over the same length from scratch."""
    same = [r for r in runs if r.is_reference and _as_long(r, run)]
    finished = [(r, e) for r in same for e in r.evaluations if e.step == r.total]
    if not finished:
        return None, f"{same[0].label} has not finished" if same else "none of this length"
    reference, value = min(finished, key=lambda pair: pair[1].loss)
    return compare(end, reference, value, equal_tokens=True), ""


def _as_long(reference: RunData, run: RunData) -> bool:
    """Whether a run from scratch has the same model, held-out text and number of tokens."""
    same = reference.config.model == run.config.model and reference.held_out == run.held_out
    ends = [r.clock.tokens_at(r.total) for r in (reference, run)]
    return same and ends[0] == ends[1]


@dataclass(frozen=True)
class Amount:
    """An amount of training; seconds are None where speed was not measured."""

    steps: int = 0
    tokens: int = 0
    seconds: float | None = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return self._combined(other, 1)

    def __sub__(self, other: "Amount") -> "Amount":
        return self._combined(other, -1)

    def _combined(self, other: "Amount", sign: int) -> "Amount":
        known = self.seconds is not None and other.seconds is not None
        seconds = (self.seconds or 0) + sign * (other.seconds or 0) if known else None
        return Amount(self.steps + sign * other.steps, self.tokens + sign * other.tokens, seconds)


@dataclass(frozen=True)
class Cost:
    """What the finished cooldowns of a trunk cost, against training each from scratch."""

    trunk: RunData
    finished: tuple[RunData, ...]
    unfinished: tuple[RunData, ...]
    needed: Amount
    """The trunk up to the last branch point, and the branches."""
    scratch: Amount
    """Every horizon from step 0, at the measured speed of the same steps."""
    as_run: Amount
    """All that was trained, also what no finished cooldown needed."""
    beyond: Amount
    """The trunk's training after the last branch point."""

    @property
    def ratio(self) -> float:
        """Needed tokens over tokens from scratch."""
        return self.needed.tokens / self.scratch.tokens


def costs(runs: Sequence[RunData]) -> list[Cost]:
    """One entry for each trunk with a finished cooldown."""
    found = [_cost(run, runs) for run in runs if run.record.parent is None]
    return [cost for cost in found if cost is not None]


def _cost(root: RunData, runs: Sequence[RunData]) -> Cost | None:
    family = [run for run in runs if lineage(run)[0] is root]
    cooldowns = [run for run in family if run.kind == "cooldown"]
    finished = [run for run in cooldowns if run.done >= run.total]
    if not finished:
        return None
    ends = needed_steps(finished)
    carriers = [run for run in ends if run not in finished]
    return Cost(
        trunk=root,
        finished=tuple(finished),
        unfinished=tuple(run for run in cooldowns if run not in finished),
        needed=_total(spent(run, end) for run, end in ends.items()),
        scratch=_total(from_scratch(run) for run in finished),
        as_run=_total(spent(run, run.done) for run in family),
        beyond=_total(
            spent(run, max(run.done, ends[run])) - spent(run, ends[run]) for run in carriers
        ),
    )


def needed_steps(finished: Sequence[RunData]) -> dict[RunData, int]:
    """How far each run had to be trained for these to finish: {run: step}."""
    ends = {run: run.total for run in finished}
    for run in finished:
        chain = lineage(run)
        for parent, child in pairwise(chain):
            ends[parent] = max(ends.get(parent, 0), child.begin)
    return ends


def spent(run: RunData, until: int) -> Amount:
    """What the run trained itself, from its first step to `until`."""
    tokens = run.clock.tokens_at(until) - run.clock.tokens_at(run.begin)
    return Amount(until - run.begin, tokens, seconds(run, until))


def from_scratch(run: RunData) -> Amount:
    """The whole training that led to the end of `run`, ancestors included."""
    chain = lineage(run)
    ends = [child.begin for child in chain[1:]] + [run.total]
    return _total(spent(part, end) for part, end in zip(chain, ends, strict=True))


def seconds(run: RunData, until: int) -> float | None:
    """Training seconds from the run's first step to `until`: tokens over the measured rates.

    Each row's rate holds since the row before; the last one's for steps after it. Evaluations,
    saves and steps that a crash made the run repeat are not in it. None without a measured rate.
    """
    rows = [row for row in run.training if row.rate > 0]
    if not rows:
        return 0.0 if until <= run.begin else None
    total, seen = 0.0, run.clock.tokens_at(run.begin)
    target = run.clock.tokens_at(until)
    for row in rows:
        upto = max(seen, min(row.tokens, target))
        total, seen = total + (upto - seen) / row.rate, upto
    return total + max(0, target - seen) / rows[-1].rate


def _total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())
