"""The command `report`: a page about the runs in a folder, and a short table in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from llm_pretrain import atomic
from llm_pretrain.config.arguments import check_flags, file_option
from llm_pretrain.errors import EXIT_OK, UserError, writing
from llm_pretrain.records import now
from llm_pretrain.report import words
from llm_pretrain.report.analysis import Gain, gains
from llm_pretrain.report.collect import Collection, collect
from llm_pretrain.report.data import RunData
from llm_pretrain.report.page import render
from llm_pretrain.terminal import console


def report(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain report ARGUMENTS`; the exit code. Raises UserError for bad input."""
    root, output = _parse(arguments)
    collection = collect(root)
    with writing("--out", output):
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
    screen = console()
    screen.print(table, highlight=False)
    for run in collection.runs:
        for note in run.notes:
            screen.print(f"{escape(run.label)}: {escape(note)}", highlight=False)
    for unreadable in collection.unreadable:
        screen.print(f"{escape(str(unreadable.path))}: {escape(unreadable.reason)}")


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
    rest, output = file_option(arguments, "--out", "one FILE.html")
    check_flags("report", [word for word in rest if word.startswith("-")], ["--out"])
    if len(rest) != 1:
        raise UserError(
            f"report: takes one folder with runs, and --out FILE.html; got {' '.join(rest)}"
        )
    root = Path(rest[0])
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    return root, output or root / "report.html"
