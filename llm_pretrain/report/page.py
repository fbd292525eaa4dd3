"""The page: sections in order, everything inside one file."""

import html
from collections.abc import Sequence

import plotly.io
import plotly.offline

from llm_pretrain import __version__
from llm_pretrain.report import figures, reproduce, tables, words
from llm_pretrain.report.analysis import CLEAR, Cost, Gain, costs, gains
from llm_pretrain.report.collect import Collection
from llm_pretrain.report.curves import MOST_ROWS
from llm_pretrain.report.data import RunData
from llm_pretrain.report.figures import Figure
from llm_pretrain.report.tables import Column, table

# The policy makes a browser refuse whatever would need a network.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
)
# Buttons are listed one by one: plotly's own choice has one that uploads the chart.
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    "plotlyServerURL": "",
    "toImageButtonOptions": {"scale": 2},
}
_ZOOM = (
    "Drag to zoom, double-click to see everything; click a name to hide it. The first steps may "
    "lie above the picture."
)
_STYLE = """
:root { color-scheme: light dark; --text: #1d1d1f; --back: #fbfbfa; --line: #d9d9d6;
  --soft: #5c5c60; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ea; --back: #17181a; --line: #3a3b3e; --soft: #a3a3a8; --card: #1f2023; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; color: var(--text); background: var(--back); max-width: 1160px; margin: 0 auto;
  padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 75ch; margin: .5rem 0; }
.headline { font-size: 1.45rem; line-height: 1.35; font-weight: 600; max-width: 62ch; }
.note { color: var(--soft); font-size: .9rem; }
.chart { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
  margin: .8rem 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
td.text { min-width: 5rem; max-width: 18rem; overflow-wrap: break-word; }
td:first-child { font-weight: 600; min-width: 11.5rem; }
td.code { font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; min-width: 11rem;
  overflow-wrap: anywhere; }
tr.main td { border-bottom: 0; }
tr.detail td { padding-top: 0; color: var(--soft); font-weight: 400; overflow-wrap: anywhere; }
"""


def render(collection: Collection, made: str) -> str:
    """The whole page as HTML; `made` is the time it says it was made."""
    found, cost = gains(collection.runs), costs(collection.runs)
    sections = [
        _opening(collection, found, cost),
        _losses(collection.runs),
        _rates(collection.runs),
        _runs(collection),
        _gained(collection.runs, found),
        _cost(collection.runs, cost),
        _reproduce(collection, made),
    ]
    title = html.escape(f"Report: {collection.root}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{plotly.offline.get_plotlyjs()}</script>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _section(name: str, title: str, *parts: str) -> str:
    inside = "\n".join(part for part in parts if part)
    return f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>'


def _text(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def _chart(name: str, figure: Figure) -> str:
    drawn: str = plotly.io.to_html(
        figure,
        config=_CONFIG,
        include_plotlyjs=False,
        include_mathjax=False,
        full_html=False,
        div_id=name,
        default_width="100%",
        default_height=f"{figure['layout']['height']}px",
    )
    return f'<div class="chart">{drawn}</div>'


def _opening(collection: Collection, found: Sequence[Gain], cost: Sequence[Cost]) -> str:
    sentences = words.headline(collection.runs, found, cost)
    parts = [_text(sentence, "headline") for sentence in sentences]
    return f"<h1>Report on {html.escape(str(collection.root))}</h1>\n" + "\n".join(parts)


def _losses(runs: Sequence[RunData]) -> str:
    validation, training = figures.validation_loss(runs), figures.training_loss(runs)
    parts = ["<h3>On held-out text</h3>"]
    parts.append(_chart("validation-loss", validation) if validation else "")
    parts.append(_without(runs, [r for r in runs if not r.evaluations], "No evaluation yet"))
    parts.append(_text(f"{_lines(runs)} {_ZOOM}", "note") if validation else "")
    parts.append("<h3>On the training batches</h3>")
    parts.append(_chart("training-loss", training) if training else "")
    parts.append(_without(runs, [r for r in runs if not r.training], "No training row yet"))
    many = [run.label for run in runs if len(run.training) > MOST_ROWS]
    how = "Raw: the loss of single batches, as logged."
    if many:
        how += f" Except {', '.join(many)}: each point is the mean of neighbouring rows."
    parts.append(_text(how, "note") if training else "")
    return _section("loss", "Loss", *parts)


def _lines(runs: Sequence[RunData]) -> str:
    text = "A branch starts on its parent's curve."
    if any(run.kind == "scratch" for run in runs):
        text += " Dashed: trained from scratch with a decay of its own, in the colour of the"
        text += " cooldown that ends at the same step."
    return text


def _without(runs: Sequence[RunData], missing: Sequence[RunData], what: str) -> str:
    if not missing:
        return ""
    names = "any run" if len(missing) == len(runs) else ", ".join(run.label for run in missing)
    return _text(f"{what}: {names}." if len(missing) < len(runs) else f"{what} in {names}.")


def _rates(runs: Sequence[RunData]) -> str:
    figure = figures.learning_rate(runs)
    note = "Computed from each run's config, for all updates that the run trains or will train."
    return _section(
        "rates",
        "Learning rate",
        _chart("learning-rate", figure) if figure else "",
        _text(note, "note"),
    )


def _runs(collection: Collection) -> str:
    runs = collection.runs
    notes = [_text(f"{run.label}: {note}") for run in runs for note in run.notes]
    notes += [_text(f"{u.path.name} cannot be read: {u.reason}") for u in collection.unreadable]
    said = (
        "Steps and tokens count from step 0 of the oldest ancestor. Training time is the run's "
        "own: tokens over measured tokens/s, without evaluations, saves and repeated steps."
    )
    shown = tables.runs_table(runs) if runs else ""
    return _section("runs", "Runs", shown, *notes, _text(said, "note"))


def _gained(runs: Sequence[RunData], found: Sequence[Gain]) -> str:
    title = "What each cooldown gained"
    if not found:
        return _section("gains", title, _text("There is no cooldown yet."))
    said = (
        "Gain: the other run's validation loss minus the cooldown's, in nats per token; positive "
        "is better. The trunk's loss is interpolated between its evaluations. Standard errors are "
        "over held-out sequences and added in quadrature; since all runs see the same sequences, "
        "that is rather too much than too little for a difference. Lower or higher: by more than "
        f"{CLEAR:g} standard errors (se). How much another seed would change is not in them."
    )
    parts = ["<h3>Against the trunk</h3>", tables.trunk_table(found)]
    if any(run.is_reference for run in runs) and any(gain.end for gain in found):
        parts.append("<h3>Against a run from scratch that decays all along, as cosine does</h3>")
        parts.append(tables.reference_table([gain for gain in found if gain.end]))
    return _section("gains", title, *parts, _text(said, "note"))


def _cost(runs: Sequence[RunData], cost: Sequence[Cost]) -> str:
    parts = []
    for entry in cost:
        horizons = ", ".join(words.count(run.total) for run in entry.finished)
        parts.append(
            f"<h3>{html.escape(entry.trunk.label)}</h3>"
            + _text(
                f"Horizons of {horizons} steps: the trunk and its branches needed "
                f"{entry.ratio:.1%} of the tokens of training each from scratch."
            )
            + tables.cost_table(entry)
        )
        if entry.unfinished:
            names = ", ".join(run.label for run in entry.unfinished)
            parts.append(_text(f"Counted under “as run” only, since unfinished: {names}."))
    if not cost:
        parts.append(_text("No cooldown has finished yet."))
    orphans = [run.label for run in runs if run.orphan]
    if orphans:
        parts.append(_text(f"Not counted, since the parent is missing: {', '.join(orphans)}."))
    said = (
        "Time is wall-clock, at the measured tokens/s; from scratch is timed at the speed of "
        "the same steps here. Runs trained from scratch for comparison are not in the table."
    )
    return _section("cost", "What it cost", *parts, _text(said, "note"))


def _reproduce(collection: Collection, made: str) -> str:
    columns = [
        Column("run"),
        Column("command", "code"),
        Column("versions", "code"),
        Column("created"),
    ]
    rows = [
        [run.label, reproduce.command(run), reproduce.versions(run), run.record.created]
        for run in collection.runs
    ]
    said = (
        "The commands start each run anew, in the code of its commit; config.yaml in a run's "
        "directory holds every setting, also those that a resume has changed since."
    )
    end = f"Made {made} by llm-pretrain {__version__}."
    shown = table(columns, rows) if rows else ""
    return _section("reproduce", "Reproduce", shown, _text(said, "note"), _text(end, "note"))
