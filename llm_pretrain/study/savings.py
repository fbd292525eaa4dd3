"""What reusing trunks saved, from the steps and device time of the runs themselves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.report.analysis import Amount, Cost, costs, spent
from llm_pretrain.report.collect import collect_runs
from llm_pretrain.report.data import RunData
from llm_pretrain.runs import Seen
from llm_pretrain.study.expand import Stem


@dataclass(frozen=True)
class Spent:
    """Training: tokens, operations, and device-seconds where speed was measured."""

    tokens: int
    flops: int
    seconds: float | None

    @classmethod
    def total(cls, parts: Iterable["Spent"]) -> "Spent":
        """The sum; no seconds where one part has none."""
        found = list(parts)
        times = [part.seconds for part in found]
        known = [time for time in times if time is not None]
        return cls(
            sum(part.tokens for part in found),
            sum(part.flops for part in found),
            sum(known) if len(known) == len(times) else None,
        )


@dataclass(frozen=True)
class Saved:
    """Finished cooldowns of one name with their trunks, against each of them from scratch."""

    label: str
    trunks: int
    cooldowns: int
    needed: Spent
    """Trunks to their last branch point, and the cooldowns."""
    scratch: Spent
    """Every cooldown's horizon from step 0, at the measured speed of the same steps."""

    @property
    def flops_ratio(self) -> float:
        """Operations spent, over those from scratch."""
        return self.needed.flops / self.scratch.flops

    @property
    def time_ratio(self) -> float | None:
        """Device time spent, over that from scratch; None where it was not measured."""
        needed, scratch = self.needed.seconds, self.scratch.seconds
        return None if needed is None or not scratch else needed / scratch


@dataclass(frozen=True)
class Savings:
    """Of a whole study."""

    saved: tuple[Saved, ...]
    """One entry a name: cooldowns of several shapes could each have the trunks to themselves."""
    everything: Spent
    """All that the study's runs trained, also references and what no cooldown needed."""


def savings(stems: Sequence[Stem], own: Sequence[Path], *, causal: bool = False) -> Savings | None:
    """What reuse saved; None before a cooldown has finished.

    `own`: the study's runs that are there. `causal`: operations without those of masked scores.
    """
    if not own:
        return None
    place = own[0].parent
    runs = collect_runs(place, [Seen(path) for path in own]).runs
    found: list[Saved] = []
    for label in dict.fromkeys(label for stem in stems for label in stem.cooldowns):
        paths = {r.run for stem in stems for r in stem.results if r.label == label}
        family = [run for run in runs if run.record.parent is None or run.path in paths]
        if cost := costs(family):
            found.append(_saved(label, cost, causal))
    if not found:
        return None
    everything = Spent.total(_spent(run, spent(run, run.done), causal) for run in runs)
    return Savings(tuple(found), everything)


def _saved(label: str, found: Sequence[Cost], causal: bool) -> Saved:
    return Saved(
        label=label,
        trunks=len(found),
        cooldowns=sum(len(cost.finished) for cost in found),
        needed=Spent.total(_spent(cost.trunk, cost.needed, causal) for cost in found),
        scratch=Spent.total(_spent(cost.trunk, cost.scratch, causal) for cost in found),
    )


def _spent(run: RunData, amount: Amount, causal: bool) -> Spent:
    """With the operations of the run's model, and the devices that its seconds were of."""
    per_token = flops_per_token(run.config.model, run.config.data.sequence_length, causal=causal)
    devices = run.record.sessions[-1].get("world_size", 1) if run.record.sessions else 1
    seconds = None if amount.seconds is None else amount.seconds * devices
    return Spent(amount.tokens, amount.tokens * per_token, seconds)
