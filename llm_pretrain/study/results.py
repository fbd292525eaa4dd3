"""What a study has measured: the loss of each result that is there, and why others are not."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_pretrain.config.average import BEST
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.study.cost import tokens_of
from llm_pretrain.study.expand import Result, Stem


@dataclass(frozen=True)
class Measured:
    """A result with its loss, in nats per token."""

    result: Result
    loss: float
    point: Point


@dataclass(frozen=True)
class Found:
    """All that there is so far."""

    measured: tuple[Measured, ...]
    excluded: tuple[Excluded, ...]
    """Results that are not there yet, each with the reason."""

    def points(self, label: str) -> list[Point]:
        """Of the results called so."""
        return [m.point for m in self.measured if m.result.label == label]

    @cached_property
    def cells(self) -> dict[tuple[str, str, int], dict[int, float]]:
        """Losses by seed, by size, label and horizon in steps."""
        table: dict[tuple[str, str, int], dict[int, float]] = {}
        for one in self.measured:
            result = one.result
            key = (result.size, result.label, result.horizon)
            table.setdefault(key, {})[result.seed] = one.loss
        return table


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, and its standard error; None of a single seed."""

    mean: float
    stderr: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of at least one value."""
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return cls(statistics.fmean(values), error, len(values))


def paired(ours: dict[int, float], others: dict[int, float]) -> Mean | None:
    """The mean difference over the seeds that both have; None without one."""
    seeds = sorted(ours.keys() & others.keys())
    return Mean.of([ours[seed] - others[seed] for seed in seeds]) if seeds else None


def collect(stems: Sequence[Stem], counting: Counting | None = None) -> Found:
    """Read every result of a study. `counting`: of N and C in the points for laws."""
    counts = counting or Counting()
    measured: list[Measured] = []
    excluded: list[Excluded] = []
    for stem in stems:
        for run, wanted in _by_run(stem.results).items():
            reader = _Reader.at(run)
            for result in wanted:
                loss = reader.loss(result)
                if isinstance(loss, str):
                    excluded.append(Excluded(_named(result), loss))
                else:
                    measured.append(_measured(stem, result, loss, counts))
    return Found(tuple(measured), tuple(excluded))


@dataclass(frozen=True)
class _Reader:
    """The evaluations of a run, by step."""

    problem: str | None
    """Why there are none to be read."""
    finished: bool
    state: str
    rows: dict[int, dict[str, Any]]

    @classmethod
    def at(cls, path: Path) -> "_Reader":
        if not Run.exists(path):
            return cls("not started", False, "", {})
        run = Run.open(path)
        try:
            record, metrics = run.record, run.metrics()
        except (UserError, OSError, ValueError) as error:
            return cls(str(error), False, "", {})
        state = f"{run.status} at step {record.step:,} of {record.total:,}"
        if record.reason:
            state += f" ({record.reason.splitlines()[0]})"
        rows = {row["step"]: row for row in metrics if "val_loss" in row}
        return cls(None, record.state == "finished", state, rows)

    def loss(self, result: Result) -> float | str:
        """What was measured, or why it was not."""
        if self.problem:
            return self.problem
        row = self.rows.get(result.horizon)
        if row is None or (result.kind != "along" and not self.finished):
            return f"unfinished: {self.state}" if not self.finished else "not evaluated there"
        loss = row.get(BEST if result.read == "average" else "val_loss")
        if loss is None:
            return f"no average ends at step {result.horizon:,}"
        return float(loss) if math.isfinite(loss) else f"its loss is {loss}"


def _by_run(results: Sequence[Result]) -> dict[Path, list[Result]]:
    found: dict[Path, list[Result]] = {}
    for result in results:
        found.setdefault(result.run, []).append(result)
    return found


def _named(result: Result) -> str:
    if result.kind == "along":
        return f"{result.run.name} at step {result.horizon} ({result.label})"
    return result.run.name


def _measured(stem: Stem, result: Result, loss: float, counts: Counting) -> Measured:
    config = stem.config
    tokens = tokens_of(config, 0, result.horizon)
    point = Point(
        run=_named(result),
        size=result.size,
        params=counts.params(config.model),
        tokens=tokens,
        loss=loss,
        flops=counts.flops(config.model, config.data.sequence_length, tokens),
        source=_source(result),
        seed=result.seed,
    )
    return Measured(result, loss, point)


def _source(result: Result) -> str:
    """The word of the laws for where a loss is from."""
    if result.read == "average":
        return "average"
    return "cooldown" if result.kind == "cooldown" else result.label
