"""What a study has measured: the loss of each result that is there, and why others are not."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_pretrain.config.average import BEST
from llm_pretrain.config.diff import differences, held_out
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.points import Excluded, Point
from llm_pretrain.schedule.schedule import Schedule
from llm_pretrain.study.cost import tokens_of
from llm_pretrain.study.expand import Result, Stem
from llm_pretrain.study.reconcile import changes


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
    runs: tuple[Path, ...] = ()
    """All that are there of the study's own, measured or not."""

    def points(self, label: str) -> list[Point]:
        """Of the results called so."""
        return [m.point for m in self.measured if m.result.label == label]

    @cached_property
    def cells(self) -> dict[tuple[str, str, int], dict[int, float]]:
        """Losses by seed, by size, label and column."""
        table: dict[tuple[str, str, int], dict[int, float]] = {}
        for one in self.measured:
            result = one.result
            key = (result.size, result.label, result.column)
            table.setdefault(key, {})[result.seed] = one.loss
        return table

    @cached_property
    def horizons(self) -> dict[str, list[int]]:
        """By size, in the study's order: where something is measured, in steps, ascending."""
        sizes = dict.fromkeys(size for size, _, _ in self.cells)
        return {size: sorted({h for other, _, h in self.cells if other == size}) for size in sizes}


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
    runs: list[Path] = []
    for stem in stems:
        by_run = _by_run(stem.results)
        for wanted in _runs(stem):
            reader = _Reader.at(wanted)
            runs += [wanted.path] if reader.own else []
            for result in by_run.get(wanted.path, []):
                loss = reader.loss(result)
                if isinstance(loss, str):
                    excluded.append(Excluded(_named(result), loss))
                else:
                    measured.append(_measured(stem, result, loss, counts))
    return Found(tuple(measured), tuple(excluded), tuple(runs))


@dataclass(frozen=True)
class _Wanted:
    """A run of the study, as it should be."""

    path: Path
    config: TrainConfig
    schedule: Schedule
    parent: str | None = None
    """Id of the trunk, where that is known."""

    def problem(self, run: Run) -> str:
        """Why what is there is another run; empty when it is not. Raises UserError."""
        changed = changes(run, self.config, self.schedule)
        link = run.record.parent
        if not changed and self.parent and link and link.run != self.parent:
            changed = [f"its parent: {link.run} -> {self.parent}"]
        return f"another run: {'; '.join(changed)}" if changed else ""


def _runs(stem: Stem) -> Iterator[_Wanted]:
    yield _Wanted(stem.path, stem.config, stem.schedule)
    trunk = Run(stem.path).identity
    for branch in stem.branches:
        yield _Wanted(branch.path, branch.config, branch.schedule, trunk)


@dataclass(frozen=True)
class _Reader:
    """The evaluations of a run, by step."""

    problem: str
    """Why there are none to be read; empty when there are."""
    own: bool = False
    """Whether it is there, and as the study would train it."""
    finished: bool = False
    state: str = ""
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def at(cls, wanted: _Wanted) -> "_Reader":
        if not Run.exists(wanted.path):
            return cls("not started")
        try:
            run = Run.open(wanted.path)
            other = wanted.problem(run)
            record, metrics = run.record, run.metrics()
            rows = {row["step"]: row for row in metrics if "val_loss" in row}
        except UserError as error:
            return cls(str(error))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return cls(f"metrics.jsonl cannot be read ({error})")
        if other:
            return cls(other)
        text = differences(held_out(run.config), held_out(wanted.config))
        state = f"{run.status} at step {record.step:,} of {record.total:,}"
        if record.reason:
            state += f" ({record.reason.splitlines()[0]})"
        problem = f"evaluated on other text: {'; '.join(text)}" if text else ""
        return cls(problem, True, record.state == "finished", state, rows)

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
