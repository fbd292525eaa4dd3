"""The command `report`: a page about the runs in a folder, and a short table in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_pretrain import atomic
from llm_pretrain.errors import EXIT_OK, UserError, writing
from llm_pretrain.records import now
from llm_pretrain.report import words
from llm_pretrain.report.analysis import Gain, gains
from llm_pretrain.report.collect import Collection, collect
from llm_pretrain.report.data import RunData
from llm_pretrain.report.page import render

_USAGE = """usage: llm-pretrain report RUNS [output=PATH]

Writes one HTML page about the runs in the folder RUNS (or about one run and its ancestors), by
default to RUNS/report.html. It opens without a network."""
_PIPE_WIDTH = 140


def report(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain report ARGUMENTS`; the exit code. Raises UserError for bad input."""
    if "--help" in arguments or "-h" in arguments:
        print(_USAGE)
        return EXIT_OK
    root, output = _parse(arguments)
    collection = collect(root)
    with writing("output", output):
        atomic.write_text(output, render(collection, now()))
    show(collection)
    print(output)
    return EXIT_OK


def show(collection: Collection) -> None:
    """Print the summary: one row a run."""
    table = Table(title=f"Runs in {escape(str(collection.root))}", title_justify="left")
    for name in ("run", "from", "state", "step", "tokens", "val loss", "gain over trunk", "> 3 se"):
        table.add_column(name, overflow="fold")
    found = {gain.run: gain for gain in gains(collection.runs)}
    for run in collection.runs:
        table.add_row(*(escape(cell) for cell in _row(run, found.get(run))))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(table, highlight=False)
    for run in collection.runs:
        for note in run.notes:
            console.print(f"{escape(run.label)}: {escape(note)}", highlight=False)
    for unreadable in collection.unreadable:
        console.print(f"{escape(str(unreadable.path))}: {escape(unreadable.reason)}")


def _row(run: RunData, gain: Gain | None) -> list[str]:
    gained = clear = words.DASH
    if gain and gain.trunk and gain.trunk.equal_tokens:
        gained, clear = words.gain(gain.trunk), "yes" if gain.trunk.clear else "no"
    elif gain:
        gained = gain.note
    return [
        run.label,
        str(run.begin) if run.record.parent else words.DASH,
        run.status,
        f"{run.done}/{run.total}",
        words.tokens(run.clock.tokens_at(run.done)),
        words.loss(words.last_loss(run)),
        gained,
        clear,
    ]


def _parse(arguments: Sequence[str]) -> tuple[Path, Path]:
    outputs = [a.removeprefix("output=") for a in arguments if a.startswith("output=")]
    places = [a for a in arguments if not a.startswith("output=")]
    if len(places) != 1 or places[0].startswith("-") or len(outputs) > 1 or "" in outputs:
        raise UserError(_USAGE)
    root = Path(places[0])
    output = Path(outputs[0]) if outputs else root / "report.html"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if not output.parent.is_dir():
        raise UserError(f"output: the folder {output.parent} does not exist")
    if output.is_dir():
        raise UserError(f"output: {output} is a folder; name a file, such as {output}/report.html")
    return root, output
