"""The page of a study: losses, laws with their intervals, what was saved, the runs."""

from collections.abc import Mapping, Sequence

from llm_pretrain import __version__
from llm_pretrain.report import words
from llm_pretrain.report.html import chart, document, paragraph, section
from llm_pretrain.report.tables import Column, table
from llm_pretrain.scaling.laws import Laws
from llm_pretrain.scaling.page import section as law_section
from llm_pretrain.study import charts, show
from llm_pretrain.study.budget import Budget
from llm_pretrain.study.config import StudyConfig, labels
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
        *(_law(label, law, found) for label, law in laws.items()),
        paragraph(counting, "note"),
        section("savings", "What reuse saved", *map(paragraph, show.saved(spent))),
        _runs(planned),
        paragraph(f"Made {made} by llm-pretrain {__version__}.", "note"),
    ]
    return document(f"Study {study.name}", parts)


def _losses(study: StudyConfig, found: Found) -> str:
    names = labels(study)
    columns = [Column("size"), Column("steps", "number"), *(Column(n, "number") for n in names)]
    cells = [
        [size, words.count(horizon), *(show.cell(found, size, name, horizon) for name in names)]
        for size, horizon in show.rows(study, found)
    ]
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
        table(columns, cells),
        paragraph(said, "note"),
        _differences(study, found) if len(names) > 1 else "",
        *missing,
    )


def _differences(study: StudyConfig, found: Found) -> str:
    """Each kind of result less the first one, paired by seed."""
    first, *others = labels(study)
    columns = [Column("size"), Column("steps", "number"), *(Column(n, "number") for n in others)]
    rows = []
    for size, horizon in show.rows(study, found):
        base = found.cells.get((size, first, horizon), {})
        cells = []
        for name in others:
            value = paired(found.cells.get((size, name, horizon), {}), base)
            cells.append(words.DASH if value is None else show.signed(value))
        rows.append([size, words.count(horizon), *cells])
    said = f"Differences to {first} at equal tokens, paired by seed; below zero is better."
    return f"{paragraph(said)}\n{table(columns, rows)}"


def _law(label: str, law: Laws | str, found: Found) -> str:
    if isinstance(law, str):
        return section(f"law-{label}", f"Law of {label}", paragraph(law))
    return law_section(law, found.points(label), name=f"law-{label}", title=f"Law of {label}")


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
