"""The page: sections in order, everything inside one file."""

import html
from collections.abc import Sequence

from llm_pretrain import __version__
from llm_pretrain.report import figures, reproduce, tables, words
from llm_pretrain.report.analysis import CLEAR, Cost, Gain, costs, gains
from llm_pretrain.report.collect import Collection
from llm_pretrain.report.curves import MOST_ROWS
from llm_pretrain.report.data import RunData
from llm_pretrain.report.html import chart, document, paragraph, section
from llm_pretrain.report.tables import Column, table

_ZOOM = (
    "Drag to zoom, double-click to see everything; click a name to hide it. The first steps may "
    "lie above the picture."
)


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
    return document(f"Report: {collection.root}", sections)


def _opening(collection: Collection, found: Sequence[Gain], cost: Sequence[Cost]) -> str:
    sentences = words.headline(collection.runs, found, cost)
    parts = [paragraph(sentence, "headline") for sentence in sentences]
    return f"<h1>Report on {html.escape(str(collection.root))}</h1>\n" + "\n".join(parts)


def _losses(runs: Sequence[RunData]) -> str:
    validation, training = figures.validation_loss(runs), figures.training_loss(runs)
    parts = ["<h3>On held-out text</h3>"]
    parts.append(chart("validation-loss", validation) if validation else "")
    parts.append(_without(runs, [r for r in runs if not r.evaluations], "No evaluation yet"))
    parts.append(paragraph(f"{_lines(runs)} {_ZOOM}", "note") if validation else "")
    parts.append("<h3>On the training batches</h3>")
    parts.append(chart("training-loss", training) if training else "")
    parts.append(_without(runs, [r for r in runs if not r.training], "No training row yet"))
    many = [run.label for run in runs if len(run.training) > MOST_ROWS]
    how = "Raw: the loss of single batches, as logged."
    if many:
        how += f" Except {', '.join(many)}: each point is the mean of neighbouring rows."
    parts.append(paragraph(how, "note") if training else "")
    return section("loss", "Loss", *parts)


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
    return paragraph(f"{what}: {names}." if len(missing) < len(runs) else f"{what} in {names}.")


def _rates(runs: Sequence[RunData]) -> str:
    figure = figures.learning_rate(runs)
    note = "Computed from each run's config, for all updates that the run trains or will train."
    return section(
        "rates",
        "Learning rate",
        chart("learning-rate", figure) if figure else "",
        paragraph(note, "note"),
    )


def _runs(collection: Collection) -> str:
    runs = collection.runs
    notes = [paragraph(f"{run.label}: {note}") for run in runs for note in run.notes]
    notes += [paragraph(f"{u.path.name} cannot be read: {u.reason}") for u in collection.unreadable]
    said = (
        "Steps and tokens count from step 0 of the oldest ancestor. Training time is the run's "
        "own: tokens over measured tokens/s, without evaluations, saves and repeated steps."
    )
    shown = tables.runs_table(runs) if runs else ""
    return section("runs", "Runs", shown, *notes, paragraph(said, "note"))


def _gained(runs: Sequence[RunData], found: Sequence[Gain]) -> str:
    title = "What each cooldown gained"
    if not found:
        return section("gains", title, paragraph("There is no cooldown yet."))
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
    return section("gains", title, *parts, paragraph(said, "note"))


def _cost(runs: Sequence[RunData], cost: Sequence[Cost]) -> str:
    parts = []
    for entry in cost:
        horizons = ", ".join(words.count(run.total) for run in entry.finished)
        parts.append(
            f"<h3>{html.escape(entry.trunk.label)}</h3>"
            + paragraph(
                f"Horizons of {horizons} steps: the trunk and its branches needed "
                f"{entry.ratio:.1%} of the tokens of training each from scratch."
            )
            + tables.cost_table(entry)
        )
        if entry.unfinished:
            names = ", ".join(run.label for run in entry.unfinished)
            parts.append(paragraph(f"Counted under “as run” only, since unfinished: {names}."))
    if not cost:
        parts.append(paragraph("No cooldown has finished yet."))
    orphans = [run.label for run in runs if run.orphan]
    if orphans:
        parts.append(paragraph(f"Not counted, since the parent is missing: {', '.join(orphans)}."))
    said = (
        "Time is wall-clock, at the measured tokens/s; from scratch is timed at the speed of "
        "the same steps here. Runs trained from scratch for comparison are not in the table."
    )
    return section("cost", "What it cost", *parts, paragraph(said, "note"))


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
    return section("reproduce", "Reproduce", shown, paragraph(said, "note"), paragraph(end, "note"))
