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


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where the page is too narrow."""
    head = "".join(f'<th class="{c.kind}">{html.escape(c.title)}</th>' for c in columns)
    body = []
    for row in rows:
        cells = zip(columns, row, strict=True)
        body.append("".join(f'<td class="{c.kind}">{html.escape(text)}</td>' for c, text in cells))
    lines = "\n".join(f"<tr>{cells}</tr>" for cells in body)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def runs_table(runs: Sequence[RunData]) -> str:
    """One row a run: where it comes from, how it stands, what it measured."""
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
        Column("schedule"),
        Column("git", "code"),
        Column("overrides", "code"),
    ]
    return table(columns, [_run_row(run) for run in runs])


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
        run.schedule.describe(),
        commit(run),
        " ".join(run.record.overrides) or words.DASH,
    ]


def commit(run: RunData) -> str:
    """The short commit, marked when the checkout had changes."""
    full = run.record.git.get("commit")
    if not full:
        return "not recorded"
    return f"{str(full)[:8]}{' + changes' if run.record.git.get('dirty') else ''}"


def gains_table(gains: Sequence[Gain]) -> str:
    """One row a cooldown: its end, the trunk's loss there, the reference's."""
    columns = [
        Column("cooldown"),
        Column("ends at", "number"),
        Column("validation loss", "number"),
        Column("trunk's, at equal tokens", "number"),
        Column("gain over trunk", "number"),
        Column("in standard errors", "number"),
        Column("cooldown is"),
        Column("reference as long"),
        Column("gain over reference", "number"),
        Column("in standard errors", "number"),
    ]
    return table(columns, [_gain_row(gain) for gain in gains])


def _gain_row(gain: Gain) -> list[str]:
    tokens = gain.run.clock.tokens_at(gain.run.total)
    trunk, reference = gain.trunk, gain.reference
    verdict = words.verdict(trunk) if trunk and trunk.equal_tokens else gain.note
    trunk_loss = words.loss(trunk.value) if trunk else words.DASH
    if trunk and not trunk.equal_tokens:
        trunk_loss += f" (its last, at {words.tokens(trunk.value.tokens)} tokens)"
        verdict += f"; against its last value: {words.verdict(trunk)}"
    name = f"{reference.other.label}: {words.loss(reference.value)}" if reference else ""
    return [
        gain.run.label,
        f"{words.tokens(tokens)} tokens",
        words.loss(gain.end),
        trunk_loss,
        words.gain(trunk),
        words.sigmas(trunk),
        verdict,
        name or gain.reference_note or words.DASH,
        words.gain(reference),
        words.sigmas(reference),
    ]


def cost_table(cost: Cost) -> str:
    """What a trunk's cooldowns needed, what was run, and what training from scratch takes."""
    columns = [
        Column("training"),
        Column("steps", "number"),
        Column("tokens", "number"),
        Column("measured time", "number"),
        Column("of from scratch", "number"),
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
