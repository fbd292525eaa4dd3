"""Read the runs of a folder, and their ancestors elsewhere, for the report."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_pretrain.config.average import best_average
from llm_pretrain.errors import UserError
from llm_pretrain.report.data import Evaluation, RunData, Training, lineage
from llm_pretrain.runs import Run, scan


@dataclass(frozen=True)
class Unreadable:
    """A run directory that cannot be understood, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Collection:
    """Everything the report is made of."""

    root: Path
    runs: tuple[RunData, ...]
    """Each trunk followed by its branches, then what was trained from scratch."""
    unreadable: tuple[Unreadable, ...] = ()


def collect(root: Path) -> Collection:
    """Read all runs in `root`. Raises UserError when there is none."""
    found = scan(root)
    if not found:
        raise UserError(f"{root}: holds no run; name a folder that contains run directories")
    return collect_runs(root, found)


def collect_runs(root: Path, found: Sequence[Run]) -> Collection:
    """Read these runs, of which run.json can be read, and their ancestors."""
    reader = _Reader(found)
    for run in found:
        reader.read(run)
    return Collection(root, tuple(_in_order(reader.known.values())), tuple(reader.unreadable))


class _Reader:
    """Reads each run once, parents before their branches."""

    def __init__(self, found: Sequence[Run]) -> None:
        self._by_id: dict[str, list[Run]] = defaultdict(list)
        for run in found:
            self._by_id[run.record.id].append(run)
        self._names = Counter(run.record.name for run in found)
        self._inside = {run.path.resolve() for run in found}
        self.known: dict[Path, RunData] = {}
        self.unreadable: list[Unreadable] = []

    def read(self, run: Run) -> RunData | None:
        """The run at this path, or None when it is unreadable."""
        place = run.path.resolve()
        if place in self.known or any(u.path == run.path for u in self.unreadable):
            return self.known.get(place)
        try:
            self.known[place] = self._read(run)
        except (UserError, OSError) as error:
            self.unreadable.append(Unreadable(run.path, str(error)))
        return self.known.get(place)

    def _read(self, run: Run) -> RunData:
        record, config = run.record, run.config
        rows, notes = _rows(run)
        evaluations, training, skipped = parse(rows)
        if skipped:
            notes.append(f"{skipped} rows of metrics.jsonl are not finite or incomplete; left out")
        if run.path.resolve() not in self._inside:
            notes.append(f"an ancestor from outside the folder, at {run.path}")
        parent, problem = self._parent(run)
        shared = self._names[record.name] > 1
        return RunData(
            label=f"{record.name} ({run.path.name})" if shared else record.name,
            path=run.path,
            record=record,
            status=run.status,
            config=config,
            evaluations=tuple(evaluations),
            training=tuple(training),
            parent=parent,
            notes=(*notes, *problem),
        )

    def _parent(self, run: Run) -> tuple[RunData | None, list[str]]:
        """The run it branched from, or None with the reason why it is not known."""
        link = run.record.parent
        if link is None:
            return None, []
        here = self._by_id[link.run]
        try:
            # One of several copies: the record knows which. None here: it may know another folder.
            found = here[0] if len(here) == 1 else run.parent_run()
        except UserError as error:
            return None, [f"parent not found: {error}"]
        parent = self.read(found) if found else None
        return parent, [] if parent else [f"parent not found: {link.run} cannot be read"]


def parse(rows: Iterable[dict[str, Any]]) -> tuple[list[Evaluation], list[Training], int]:
    """Split rows of metrics.jsonl; the last value counts rows that say nothing usable."""
    evaluations: list[Evaluation] = []
    training: list[Training] = []
    skipped = 0
    for row in rows:
        is_evaluation = isinstance(row, dict) and "val_loss" in row
        keys = ("val_loss", "val_stderr") if is_evaluation else ("loss", "tokens_per_second")
        try:
            step, tokens = int(row["step"]), int(row["tokens"])
            first, second = (float(row[key]) for key in keys)
        except (KeyError, TypeError, ValueError):
            skipped += 1
            continue
        if not (math.isfinite(first) and math.isfinite(second)):
            skipped += 1
        elif is_evaluation:
            evaluations.append(Evaluation(step, tokens, first, second, best_average(row)))
        else:
            training.append(Training(step, tokens, first, second))
    return evaluations, training, skipped


def _rows(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        return run.metrics(), []
    except (OSError, ValueError) as error:
        return [], [f"{run.metrics_path.name} cannot be read ({error})"]


def _in_order(runs: Iterable[RunData]) -> list[RunData]:
    """Families together, each run after its parent, branches by their start and their end."""

    def key(run: RunData) -> tuple[Any, ...]:
        chain = lineage(run)
        oldest = chain[0]
        place = [(r.begin, r.total, r.record.created, r.label) for r in chain[1:]]
        return (oldest.kind == "scratch", oldest.record.created, oldest.label, place)

    return sorted(runs, key=key)
