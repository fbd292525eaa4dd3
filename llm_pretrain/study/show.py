"""What the command `study` prints."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llm_pretrain.report import words
from llm_pretrain.study.budget import GIB, Budget, Line, amount
from llm_pretrain.study.config import StudyConfig, labels
from llm_pretrain.study.reconcile import Standing, statuses
from llm_pretrain.study.results import Found, Mean
from llm_pretrain.study.savings import Saved, Savings, Spent

_HEADS = ("run", "from", "to", "state", "apply would", "tokens", "FLOPs", "device-hours")
_MANY = 200
"""Runs of which a table shows only those from step 0, and how their branches stand in a word."""
_NUMBERS = ("from", "to", "tokens", "FLOPs", "device-hours")


def plan(study: StudyConfig, found: Budget, console: Console) -> None:
    """Every run: what exists, what would start, what it costs; then the sums."""
    table = Table(title=f"Study {study.name}", title_justify="left")
    for head in _HEADS:
        table.add_column(head, overflow="fold", justify="right" if head in _NUMBERS else "left")
    many = len(found.lines) > _MANY
    for line in found.lines:
        if many and line.begin:
            continue
        table.add_row(
            line.name,
            str(line.begin),
            str(line.end),
            line.status,
            {"none": "do nothing"}.get(line.action, line.action),
            words.tokens(line.tokens),
            f"{line.flops:.3g}",
            hours(line.device_hours),
        )
    console.print(table)
    said = [f"{line.name}: {line.reason}" for line in found.lines if _told(line)]
    if many:
        rest = [line.status for line in found.lines if line.begin]
        said.insert(0, f"beside these, branches: {counted(rest)}")
    for text in [*said, *totals(found)]:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def totals(found: Budget) -> list[str]:
    """The sums of a study, a line each."""
    count = words.plural(len(found.lines), "run")
    lines = [f"{count}: {found.flops:.3g} FLOPs, at most {found.disk / GIB:.2f} GiB of checkpoints"]
    whole, left = found.hours(left=False), found.hours(left=True)
    if whole is None or left is None:
        lines.append("device-hours: not known before a run of each size has measured its speed")
    else:
        how = "measured" if all(x.speed and x.speed.measured for x in found.lines) else "estimated"
        lines.append(f"device-hours: {hours(whole)}, of which {hours(left)} are left ({how} speed)")
    lines += [
        f"{label}: trunks with cooldowns take {saved.needed:.3g} FLOPs, as many runs from scratch "
        f"{saved.scratch:.3g}: ratio {saved.ratio:.3f}"
        for label, saved in found.reuse.items()
    ]
    wait = f"; {found.held} more wait for study.limits.jobs" if found.held else ""
    lines.append(f"apply would start {words.plural(found.starting, 'run')} now{wait}")
    return lines


def _told(line: Line) -> bool:
    """A branch that waits for its trunk says nothing that the table does not."""
    return bool(line.reason) and line.action != "wait"


def hours(value: float | None) -> str:
    """Device-hours; a dash where they are not known."""
    return words.DASH if value is None else amount(value)


def results(study: StudyConfig, found: Found, console: Console) -> None:
    """Losses of each size by method and horizon, means over seeds, and why others are missing."""
    for size, horizons in found.horizons.items():
        table = Table(title=f"{study.name}, {size}: validation loss at step", title_justify="left")
        table.add_column("")
        for horizon in horizons:
            table.add_column(words.count(horizon), justify="right")
        for label in labels(study):
            table.add_row(
                label, *(cell(study, found, size, label, horizon) for horizon in horizons)
            )
        console.print(table)
    for text in left_out(found):
        console.print(f"left out: {text}", highlight=False, markup=False, soft_wrap=True)


def left_out(found: Found) -> list[str]:
    """Every result that is missing, by the reason: a study of which little is there has many."""
    names: dict[str, list[str]] = {}
    for one in found.excluded:
        names.setdefault(one.reason, []).append(one.run)
    return [f"{', '.join(runs)}: {reason}" for reason, runs in names.items()]


def cell(study: StudyConfig, found: Found, size: str, label: str, horizon: int) -> str:
    """A mean with its standard error, and of how many of the study's seeds where it has several."""
    losses = found.cells.get((size, label, horizon))
    if not losses:
        return words.DASH
    value = Mean.of(list(losses.values()))
    error = "" if value.stderr is None else f" ± {value.stderr:.4f}"
    return f"{value.mean:.4f}{error}" + (f" ({value.count})" if len(study.seeds) > 1 else "")


def signed(value: Mean) -> str:
    """A difference: +0.0123 ± 0.0012."""
    text = words.signed(value.mean)
    return text if value.stderr is None else f"{text} ± {value.stderr:.4f}"


def saved(found: Savings | None) -> list[str]:
    """What the trunks saved, as sentences."""
    if found is None:
        return ["savings: none to tell before a cooldown has finished"]
    return [*map(_saved, found.saved), f"all runs of the study: {_spent(found.everything)}"]


def _saved(one: Saved) -> str:
    ratio = "" if one.time_ratio is None else f" and {one.time_ratio:.3f} of the device time"
    return (
        f"{one.label}: {words.plural(one.cooldowns, 'cooldown')} from "
        f"{words.plural(one.trunks, 'trunk')} took {one.flops_ratio:.3f} of the FLOPs{ratio} of "
        f"as many runs from scratch: {_spent(one.needed)} against {_spent(one.scratch)}"
    )


def _spent(value: Spent) -> str:
    return f"{value.flops:.3g} FLOPs, {words.duration(value.seconds)}"


def summary(found: Sequence[Standing]) -> str:
    """How many runs stand how: '9 finished, 2 queued, 4 missing'."""
    return counted(statuses(found))


def waiting(runs: int, folder: Path) -> str:
    """That runs could start but for the limit, and what starts them."""
    return (
        f"{words.plural(runs, 'run')} more can start when fewer are under way (study.limits.jobs): "
        f"llm-pretrain study watch {folder}"
    )


def counted(statuses: Sequence[str]) -> str:
    """Equal words once, with their number."""
    return ", ".join(f"{count} {word}" for word, count in Counter(statuses).items())
