"""The page of a study: losses, laws with their intervals, what was saved, the runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from llm_pretrain import __version__
from llm_pretrain.report import words
from llm_pretrain.report.html import chart, document, paragraph, section
from llm_pretrain.report.tables import Column, table
from llm_pretrain.scaling.laws import Laws
from llm_pretrain.scaling.page import section as law_section
from llm_pretrain.study import charts, show
from llm_pretrain.study.budget import Budget
from llm_pretrain.study.config import StudyConfig, labels
from llm_pretrain.study.laws import refusals
from llm_pretrain.study.results import Found, paired
from llm_pretrain.study.savings import Savings


def render(
    study: StudyConfig,
    found: Found,
    *,
    planned: Budget,
    laws: Mapping[str, Laws | str],
    spent: Savings | None,
    counting: str,
    made: str,
) -> str:
    """The whole page as HTML; `counting` says what N and C are, `made` is the time."""
    done = sum(not line.left for line in planned.lines)
    parts = [
        f"<h1>Study {study.name}</h1>",
        paragraph(show.saved(spent)[0], "headline"),
        paragraph(f"{done} of {words.plural(len(planned.lines), 'run')} finished."),
        _losses(study, found),
        *_laws(laws, found),
        paragraph(counting, "note"),
        section("savings", "What reuse saved", *map(paragraph, show.saved(spent))),
        _runs(planned),
        paragraph(f"Made {made} by llm-pretrain {__version__}.", "note"),
    ]
    return document(f"Study {study.name}", parts)


def _losses(study: StudyConfig, found: Found) -> str:
    seeds = len(study.seeds)
    said = "Losses in nats per token on the same held-out sequences"
    said += (
        f": mean ± standard error over seeds (their number, of {seeds})."
        if seeds > 1
        else ", of a single seed: without an error from seed to seed."
    )
    missing = [paragraph(f"Left out: {one.run}: {one.reason}", "note") for one in found.excluded]
    return section(
        "losses",
        "Losses",
        chart("losses-chart", charts.losses(study, found)),
        *_by_size(found, labels(study), partial(show.cell, study, found)),
        paragraph(said, "note"),
        *_differences(study, found),
        *missing,
    )


def _by_size(
    found: Found, names: Sequence[str], cell: Callable[[str, str, int], str]
) -> Iterator[str]:
    """A table for each size, with a row for each of `names` and a column for each horizon."""
    for size, horizons in found.horizons.items():
        columns = [
            Column(f"{size}, at step"),
            *(Column(words.count(h), "number") for h in horizons),
        ]
        yield table(columns, [[name, *(cell(size, name, h) for h in horizons)] for name in names])


def _differences(study: StudyConfig, found: Found) -> Iterator[str]:
    """Each kind of result less the first one, paired by seed."""
    first, *others = labels(study)
    if not others:
        return

    def cell(size: str, name: str, horizon: int) -> str:
        base = found.cells.get((size, first, horizon), {})
        value = paired(found.cells.get((size, name, horizon), {}), base)
        return words.DASH if value is None else show.signed(value)

    said = f"Differences to {first} at the same horizon, paired by seed; below zero is better."
    yield paragraph(said)
    yield from _by_size(found, others, cell)


def _laws(laws: Mapping[str, Laws | str], found: Found) -> Iterator[str]:
    for label, law in laws.items():
        if not isinstance(law, str):
            points = found.points(label)
            yield law_section(law, points, name=f"law-{label}", title=f"Law of {label}")
    if missing := refusals(laws):
        yield section("no-law", "No law", *map(paragraph, missing))


def _runs(planned: Budget) -> str:
    columns = [
        Column("run"),
        Column("from", "number"),
        Column("to", "number"),
        Column("state"),
        Column("tokens", "number"),
        Column("FLOPs", "number"),
        Column("device-hours", "number"),
    ]
    rows: Sequence[Sequence[str]] = [
        [
            line.name,
            words.count(line.begin),
            words.count(line.end),
            line.status,
            words.tokens(line.tokens),
            f"{line.flops:.3g}",
            show.hours(line.device_hours),
        ]
        for line in planned.lines
    ]
    sums = [paragraph(text, "note") for text in show.totals(planned)]
    return section("runs", "Runs", table(columns, rows), *sums)
