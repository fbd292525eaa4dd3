"""What the command `study` prints."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from llm_pretrain.report import words
from llm_pretrain.study.budget import GIB, Budget, Line
from llm_pretrain.study.config import StudyConfig, labels
from llm_pretrain.study.reconcile import Standing
from llm_pretrain.study.results import Found, Mean
from llm_pretrain.study.savings import Savings, Spent

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
    if found.ratio is not None:
        lines.append(
            f"trunks with cooldowns: {found.shared_flops:.3g} FLOPs; each of these results from "
            f"scratch: {found.scratch_flops:.3g}; ratio {found.ratio:.3f}"
        )
    lines.append(f"apply would start {words.plural(found.starting, 'run')} now")
    return lines


def _told(line: Line) -> bool:
    """A branch that waits for its trunk says nothing that the table does not."""
    return bool(line.reason) and line.action != "wait"


def hours(value: float | None) -> str:
    """Device-hours; a dash where they are not known."""
    return words.DASH if value is None else f"{value:.3g}"


def results(study: StudyConfig, found: Found, console: Console) -> None:
    """Losses of each size by method and horizon, means over seeds, and why others are missing."""
    for size, horizons in measured(study, found):
        table = Table(title=f"{study.name}, {size}: validation loss at step", title_justify="left")
        table.add_column("")
        for horizon in horizons:
            table.add_column(words.count(horizon), justify="right")
        for label in labels(study):
            table.add_row(label, *(cell(found, size, label, horizon) for horizon in horizons))
        console.print(table)
    for one in found.excluded:
        console.print(f"left out: {one.run}: {one.reason}", highlight=False, markup=False)


def measured(study: StudyConfig, found: Found) -> list[tuple[str, list[int]]]:
    """Sizes of which something is measured, in the study's order, and at which horizons in steps,
    ascending."""
    seen = {(size, horizon) for size, _, horizon in found.cells}
    at = {size: sorted(horizon for other, horizon in seen if other == size) for size in study.sizes}
    return [(size, horizons) for size, horizons in at.items() if horizons]


def cell(found: Found, size: str, label: str, horizon: int) -> str:
    """A mean with its standard error, and the number of seeds when it is not all."""
    losses = found.cells.get((size, label, horizon))
    return mean(Mean.of(list(losses.values()))) if losses else words.DASH


def mean(value: Mean) -> str:
    """3.1234 ± 0.0012 (3)."""
    if value.stderr is None:
        return f"{value.mean:.4f}"
    return f"{value.mean:.4f} ± {value.stderr:.4f} ({value.count})"


def signed(value: Mean) -> str:
    """A difference: +0.0123 ± 0.0012."""
    text = words.signed(value.mean)
    return text if value.stderr is None else f"{text} ± {value.stderr:.4f}"


def savings(found: Savings | None, console: Console) -> None:
    """What the trunks saved."""
    for text in saved(found):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def saved(found: Savings | None) -> list[str]:
    """The same as sentences."""
    if found is None:
        return ["savings: none to tell before a cooldown has finished"]
    cooldowns = sum(family.cooldowns for family in found.families)
    time = found.time_ratio
    ratio = "" if time is None else f" and {time:.3f} of the device time"
    return [
        f"{words.plural(cooldowns, 'cooldown')} from {words.plural(len(found.families), 'trunk')} "
        f"took {found.flops_ratio:.3f} of the FLOPs{ratio} of as many runs from scratch: "
        f"{_spent(found.needed)} against {_spent(found.scratch)}",
        f"the whole study, references included: {_spent(found.everything)}",
    ]


def _spent(value: Spent) -> str:
    return f"{value.flops:.3g} FLOPs, {words.duration(value.seconds)}"


def under_way(found: Iterable[Standing]) -> bool:
    """Whether a run waits in a queue or trains."""
    return any(word in ("queued", "running") for word in _statuses(found))


def failed(found: Iterable[Standing]) -> bool:
    """Whether a run failed."""
    return "failed" in _statuses(found)


def summary(found: Sequence[Standing]) -> str:
    """How many runs stand how: '9 finished, 2 queued, 4 missing'."""
    return counted(_statuses(found))


def counted(statuses: Sequence[str]) -> str:
    """Equal words once, with their number."""
    return ", ".join(f"{count} {word}" for word, count in Counter(statuses).items())


def _statuses(found: Iterable[Standing]) -> list[str]:
    return [word for one in found for word in (one.status, *(row.status for row in one.branches))]
