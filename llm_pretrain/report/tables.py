"""HTML tables of the report; every text in them is escaped."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm_pretrain.report import words
from llm_pretrain.report.analysis import Amount, Cost, Gain, seconds
from llm_pretrain.report.data import RunData


@dataclass(frozen=True)
class Column:
    """A heading, and how its cells are set."""

    title: str
    kind: Literal["text", "number", "code"] = "text"


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], details: Sequence[str] = ()
) -> str:
    """A table that scrolls sideways where the page is too narrow.

    `details`, one a row, stand under their row across all columns.
    """
    head = "".join(f'<th class="{c.kind}">{html.escape(c.title)}</th>' for c in columns)
    body = []
    for i, row in enumerate(rows):
        cells = zip(columns, row, strict=True)
        line = "".join(f'<td class="{c.kind}">{html.escape(text)}</td>' for c, text in cells)
        if details:
            line = (
                f'<tr class="main">{line}</tr><tr class="detail">'
                f'<td colspan="{len(columns)}">{html.escape(details[i])}</td></tr>'
            )
            body.append(line)
        else:
            body.append(f"<tr>{line}</tr>")
    lines = "\n".join(body)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def runs_table(runs: Sequence[RunData]) -> str:
    """Two rows a run: how it stands and what it measured; under it, how it was asked for."""
    columns = [
        Column("run"),
        Column("from"),
        Column("state"),
        Column("steps", "number"),
        Column("tokens", "number"),
        Column("last validation loss", "number"),
        Column("last training loss", "number"),
        Column("tokens/s, median", "number"),
        Column("training time", "number"),
    ]
    rows = [_run_row(run) for run in runs]
    if any(words.last_average(run) for run in runs):
        columns.append(Column("its best average", "number"))
        rows = [
            [*row, words.last_average(run) or words.DASH]
            for row, run in zip(rows, runs, strict=True)
        ]
    return table(columns, rows, [_run_detail(run) for run in runs])


def _run_row(run: RunData) -> list[str]:
    rate = words.median_rate(run)
    return [
        run.label,
        words.origin(run),
        words.state(run),
        f"{words.count(run.done)} of {words.count(run.total)}",
        words.tokens(run.clock.tokens_at(run.done)),
        words.loss(words.last_loss(run)),
        f"{run.training[-1].loss:.4f}" if run.training else words.DASH,
        words.DASH if rate is None else f"{rate:,.0f}",
        words.duration(seconds(run, run.done)),
    ]


def _run_detail(run: RunData) -> str:
    asked = " ".join(run.record.overrides) or "none"
    return f"{run.schedule.describe()}. Git: {commit(run)}. Overrides: {asked}"


def commit(run: RunData) -> str:
    """The short commit, marked when the checkout had changes."""
    full = run.record.git.get("commit")
    if not full:
        return "not recorded"
    return f"{str(full)[:8]}{' + changes' if run.record.git.get('dirty') else ''}"


def trunk_table(gains: Sequence[Gain]) -> str:
    """One row a cooldown: its end, and the trunk's loss at equal tokens."""
    columns = [
        Column("cooldown"),
        Column("ends at, tokens", "number"),
        Column("validation loss", "number"),
        Column("trunk's at equal tokens", "number"),
        Column("gain", "number"),
        Column("the cooldown is"),
        Column("predicted before it ran", "number"),
    ]
    return table(columns, [[*_trunk_row(gain), words.predicted(gain)] for gain in gains])


def _trunk_row(gain: Gain) -> list[str]:
    trunk = gain.trunk
    verdict = words.verdict(trunk) if trunk else gain.note
    value = words.loss(trunk.value if trunk else None)
    if trunk and not trunk.equal_tokens:
        value += f" (its last, at {words.tokens(trunk.value.tokens)})"
        verdict = f"{gain.note}; against its last value: {verdict}"
    end = gain.run.clock.tokens_at(gain.run.total)
    own = [gain.run.label, words.tokens(end), words.loss(gain.end)]
    return [*own, value, words.gain(trunk), verdict]


def reference_table(gains: Sequence[Gain]) -> str:
    """One row a finished cooldown: the best run from scratch of the same length."""
    columns = [
        Column("cooldown"),
        Column("validation loss", "number"),
        Column("from scratch, as long"),
        Column("its validation loss", "number"),
        Column("gain", "number"),
        Column("the cooldown is"),
    ]
    return table(columns, [_reference_row(gain) for gain in gains])


def _reference_row(gain: Gain) -> list[str]:
    reference = gain.reference
    return [
        gain.run.label,
        words.loss(gain.end),
        reference.other.label if reference else gain.reference_note,
        words.loss(reference.value if reference else None),
        words.gain(reference),
        words.verdict(reference) if reference else words.DASH,
    ]


def cost_table(cost: Cost) -> str:
    """What a trunk's cooldowns needed, what was run, and what training from scratch takes."""
    columns = [
        Column("training"),
        Column("steps", "number"),
        Column("tokens", "number"),
        Column("measured time", "number"),
        Column("share of from scratch", "number"),
    ]
    entries = [
        ("needed: trunk to the last branch point, and the branches", cost.needed),
        ("from scratch: each horizon on its own", cost.scratch),
        ("as run: everything trained in this family", cost.as_run),
        ("of that, the trunk after the last branch point", cost.beyond),
    ]
    return table(columns, [_cost_row(name, amount, cost.scratch) for name, amount in entries])


def _cost_row(name: str, amount: Amount, scratch: Amount) -> list[str]:
    share = f"{amount.tokens / scratch.tokens:.1%} of tokens"
    if amount.seconds is not None and scratch.seconds:
        share += f", {amount.seconds / scratch.seconds:.1%} of time"
    return [
        name,
        words.count(amount.steps),
        words.tokens(amount.tokens),
        words.duration(amount.seconds),
        share,
    ]
