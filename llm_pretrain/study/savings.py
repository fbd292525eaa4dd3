"""What reusing trunks saved, from the steps and device time of the runs themselves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.report.analysis import Amount, Cost, costs, spent
from llm_pretrain.report.collect import collect
from llm_pretrain.report.data import RunData


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
class Family:
    """A trunk with its finished cooldowns, against each of them from scratch."""

    trunk: str
    cooldowns: int
    needed: Spent
    scratch: Spent


@dataclass(frozen=True)
class Savings:
    """All families of a study."""

    families: tuple[Family, ...]
    needed: Spent
    """Trunks to their last branch point, and the cooldowns."""
    scratch: Spent
    """Every cooldown's horizon from step 0, at the measured speed of the same steps."""
    everything: Spent
    """All that the study trained, also references and what no cooldown needed."""

    @property
    def flops_ratio(self) -> float:
        """Operations spent, over those from scratch."""
        return self.needed.flops / self.scratch.flops

    @property
    def time_ratio(self) -> float | None:
        """Device time spent, over that from scratch; None where it was not measured."""
        needed, scratch = self.needed.seconds, self.scratch.seconds
        return None if needed is None or not scratch else needed / scratch


def reuse_ratio(horizons: Sequence[float], cooldown: float) -> float:
    """Cost of one trunk and its cooldowns over that of a run for each horizon.

    The trunk with the last cooldown is as long as the longest horizon; each other one costs only
    its cooldown, the share `cooldown` of its horizon. `horizons` in any unit of cost.
    """
    longest = max(horizons)
    return (longest + cooldown * (sum(horizons) - longest)) / sum(horizons)


def savings(folder: Path) -> Savings | None:
    """Of the runs in a study's folder; None before a cooldown has finished."""
    runs = collect(folder).runs
    found = costs(runs)
    if not found:
        return None
    families = tuple(_family(cost) for cost in found)
    return Savings(
        families=families,
        needed=Spent.total(family.needed for family in families),
        scratch=Spent.total(family.scratch for family in families),
        everything=Spent.total(_everything(runs)),
    )


def _family(cost: Cost) -> Family:
    return Family(
        trunk=cost.trunk.label,
        cooldowns=len(cost.finished),
        needed=_spent(cost.trunk, cost.needed),
        scratch=_spent(cost.trunk, cost.scratch),
    )


def _everything(runs: Sequence[RunData]) -> Iterable[Spent]:
    return (_spent(run, spent(run, run.done)) for run in runs)


def _spent(run: RunData, amount: Amount) -> Spent:
    """With the operations of the run's model, and the devices that its seconds were of."""
    per_token = flops_per_token(run.config.model, run.config.data.sequence_length, causal=False)
    devices = run.record.sessions[-1].get("world_size", 1) if run.record.sessions else 1
    seconds = None if amount.seconds is None else amount.seconds * devices
    return Spent(amount.tokens, amount.tokens * per_token, seconds)
