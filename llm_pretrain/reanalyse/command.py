"""The command `reanalyse`: published training logs in, a page or all its numbers out."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llm_pretrain import atomic
from llm_pretrain.config.arguments import check_flags, file_option
from llm_pretrain.errors import EXIT_OK, UserError, writing
from llm_pretrain.reanalyse import words
from llm_pretrain.reanalyse.analysis import Analysis, analyse
from llm_pretrain.reanalyse.load import PaperRun, load
from llm_pretrain.records import now
from llm_pretrain.terminal import write

_DEFAULT = Path("reanalysis.html")


def reanalyse(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain reanalyse ARGUMENTS`; the exit code. Raises UserError for bad input."""
    path, output, as_json = _parse(arguments)
    runs = load(path)
    analysis = _analysed(runs)
    if output is not None:
        # Plotly takes a while to import: only where something is drawn.
        from llm_pretrain.reanalyse.page import render  # noqa: PLC0415

        with writing("--out", output):
            atomic.write_text(output, render(analysis, path.name, now()))
    if as_json:
        write(json.dumps({"source": words.SOURCE, **asdict(analysis)}, indent=1) + "\n")
    else:
        _show(analysis, output)
    return EXIT_OK


def _analysed(runs: Sequence[PaperRun]) -> Analysis:
    """The analysis, with a bar on a terminal."""
    columns = (TextColumn("fits"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None)
        return analyse(
            runs, progress=lambda done, count: bar.update(task, completed=done, total=count)
        )


def _show(analysis: Analysis, output: Path | None) -> None:
    """Print what was found, a paragraph a section."""
    findings = {
        "Noise": words.noise(analysis.repeats),
        "Cosine and WSD": f"{words.cosine_and_wsd(analysis)} {words.cosine_to_zero(analysis)}",
        "1-sqrt and linear": words.sqrt_and_linear(analysis),
        "Best rate": words.best_rates(analysis),
        "Bound's curve": words.halves(analysis),
        "Predictor": words.predictor(analysis),
    }
    console = Console()
    with console.capture() as captured:
        for title, finding in findings.items():
            console.print(f"[bold]{title}[/]", finding, highlight=False)
    write(f"{captured.get()}{output}\n")


def _parse(arguments: Sequence[str]) -> tuple[Path, Path | None, bool]:
    """The file to read, the page to write or None, and whether to print JSON."""
    rest, output = file_option(arguments, "--out", "one FILE.html")
    flags = [word for word in rest if word.startswith("-")]
    check_flags("reanalyse", flags, ["--out", "--json"])
    places = [word for word in rest if word not in flags]
    if len(places) != 1:
        raise UserError(f"reanalyse: takes one RUNS.json; got {' '.join(places) or 'none'}")
    return Path(places[0]), output if output or flags else _DEFAULT, bool(flags)
