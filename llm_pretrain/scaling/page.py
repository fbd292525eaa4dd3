"""Laws as HTML: a section that any page can take, and the page of `laws fit`."""

import html
from collections.abc import Mapping, Sequence

from llm_pretrain import __version__
from llm_pretrain.report import html as parts
from llm_pretrain.report.tables import Column, table
from llm_pretrain.scaling import charts, words
from llm_pretrain.scaling.laws import Laws
from llm_pretrain.scaling.points import Excluded, Point


def section(
    laws: Laws,
    points: Sequence[Point],
    *,
    name: str = "law",
    title: str = "Scaling law",
    budgets: Sequence[float] = (),
) -> str:
    """One law: sentences, charts, parameters, errors on what was left out, what is missing."""
    used = [p for p in points if p in set(laws.points)]
    drawn = [parts.chart(f"{name}-chart", charts.law_chart(laws, used))]
    if laws.parametric:
        drawn.append(parts.chart(f"{name}-envelope", charts.envelope_chart(laws, used)))
        drawn.append(parts.chart(f"{name}-optimum", charts.optimum_chart(laws, used)))
    said = [words.optimum(found) for flops in budgets for found in laws.optima(flops)]
    return parts.section(
        name,
        title,
        *map(parts.paragraph, [*words.law(laws), *words.left_out(laws), *said]),
        *drawn,
        _parameters(laws),
        _left_out(laws),
        *(parts.paragraph(text, "note") for text in _notes(laws)),
    )


def render(
    name: str,
    laws: Mapping[str, Laws | str],
    excluded: Sequence[Excluded],
    *,
    budgets: Sequence[float],
    said: Sequence[str],
    made: str,
) -> str:
    """The page of `laws fit`; `said`: what N and C count, `made`: the time."""
    own = [
        parts.section(f"law-{i}", f"Law of {label}", parts.paragraph(law))
        if isinstance(law, str)
        else section(law, law.points, name=f"law-{i}", title=f"Law of {label}", budgets=budgets)
        for i, (label, law) in enumerate(laws.items())
    ]
    lines = [
        f"<h1>Scaling laws of {html.escape(name)}</h1>",
        *map(parts.paragraph, said),
        *own,
        *(parts.paragraph(text, "note") for text in words.excluded(excluded)),
        parts.paragraph(f"Made {made} by llm-pretrain {__version__}.", "note"),
    ]
    return parts.document(f"Scaling laws: {name}", lines)


def _parameters(laws: Laws) -> str:
    rows = words.parameters(laws)
    columns = [Column("parameter"), Column("value (95% interval)", "number")]
    return table(columns, [list(row) for row in rows]) if rows else ""


def _left_out(laws: Laws) -> str:
    titles = ("results", "mean error", "mean size of error", "worst")
    columns = [Column("left out, nats"), *(Column(title, "number") for title in titles)]
    rows = [words.left_out_row(one) for one in laws.left_out]
    return table(columns, rows) if rows else ""


def _notes(laws: Laws) -> list[str]:
    return [words.cost(laws), words.INTERVALS, *laws.notes, *words.excluded(laws.excluded)]
