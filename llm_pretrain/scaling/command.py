"""The command `laws`: results in, laws out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table as Grid

from llm_pretrain import atomic
from llm_pretrain.config.arguments import file_option, option
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean, writing
from llm_pretrain.reanalyse.words import SOURCE
from llm_pretrain.records import now
from llm_pretrain.scaling import words
from llm_pretrain.scaling.compare import SHARE, Comparison, compare
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.laws import Laws, fit_or_reason
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.read import Table, read
from llm_pretrain.scaling.render import show
from llm_pretrain.terminal import console, write


@dataclass(frozen=True)
class _Asked:
    """The options, checked."""

    paths: list[Path]
    counting: Counting
    counting_given: bool
    budgets: list[float]
    page: Path | None
    figure: Path | None
    as_json: bool


def laws(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain laws ARGUMENTS`; the exit code. Raises UserError for bad input."""
    commands = {"fit": _fit, "compare": _compare}
    if arguments[0] not in commands:
        raise UserError(f"laws {arguments[0]}: {did_you_mean(arguments[0], commands)}")
    return commands[arguments[0]](_parse(arguments[1:]))


def _fit(asked: _Asked) -> int:
    if asked.figure:
        raise UserError("--figure: of `laws compare`; `laws fit` draws on its page (--out)")
    table = _read(asked)
    by_source: dict[str, list[Point]] = {}
    for point in table.points:
        by_source.setdefault(point.source, []).append(point)
    found = {source: fit_or_reason(points) for source, points in by_source.items()}
    if not any(isinstance(law, Laws) for law in found.values()):
        raise UserError("\n".join(f"{s}: {law}" for s, law in found.items()) or "no results")
    fits = [law for law in found.values() if isinstance(law, Laws)]
    if asked.budgets and not any(law.parametric for law in fits):
        raise UserError(f"--budget: {fits[0].notes[0]}")
    if asked.page:
        # Plotly takes a while to import: only where something is drawn.
        from llm_pretrain.scaling.page import render  # noqa: PLC0415

        name = ", ".join(path.name for path in asked.paths)
        said = _said(table, asked.counting)
        page = render(name, found, table.excluded, budgets=asked.budgets, said=said, made=now())
        with writing("--out", asked.page):
            atomic.write_text(asked.page, page)
    if asked.as_json:
        data = {
            "counting": _said(table, asked.counting),
            "laws": {s: law if isinstance(law, str) else asdict(law) for s, law in found.items()},
            "optima": {s: _optima(law, asked.budgets) for s, law in found.items()},
            "excluded": [asdict(one) for one in table.excluded],
        }
        write(json.dumps(data, indent=1) + "\n")
        return EXIT_OK
    _show_fits(found, table, asked)
    return EXIT_OK


def _show_fits(found: Mapping[str, Laws | str], table: Table, asked: _Asked) -> None:
    screen = console()
    with screen.capture() as captured:
        for source, law in found.items():
            screen.print(f"[bold]Law of {escape(source)}[/]", highlight=False)
            if isinstance(law, str):
                screen.print(law, highlight=False, markup=False)
            else:
                show(law, screen, asked.budgets)
        for text in [*_said(table, asked.counting), *words.excluded(table.excluded)]:
            screen.print(text, highlight=False, markup=False, soft_wrap=True)
        screen.print(words.INTERVALS, highlight=False)
    write(captured.get() + (f"{asked.page}\n" if asked.page else ""))


def _compare(asked: _Asked) -> int:
    if asked.budgets:
        raise UserError("--budget: of `laws fit`")
    table = _read(asked)
    # Only of the published runs is it known that all cooldowns have one share.
    share = SHARE if table.published else None
    found = compare(table.points, table.excluded, share=share)
    said = _said(table, asked.counting)
    if asked.page:
        from llm_pretrain.scaling.findings import render  # noqa: PLC0415  (plotly, as above)

        name = ", ".join(path.name for path in asked.paths)
        with writing("--out", asked.page):
            atomic.write_text(asked.page, render(found, name, [*_source(table), *said], now()))
    if asked.figure:
        from llm_pretrain.scaling.figure import draw  # noqa: PLC0415  (matplotlib)

        with writing("--figure", asked.figure):
            draw(found, asked.figure)
    if asked.as_json:
        data = {"source": _source(table), "counting": said, **asdict(found)}
        write(json.dumps(data, indent=1) + "\n")
    else:
        _show(found, [*_source(table), *said], asked)
    return EXIT_OK


def _show(found: Comparison, said: Sequence[str], asked: _Asked) -> None:
    from llm_pretrain.scaling import findings  # noqa: PLC0415  (it can draw, with plotly)

    screen = console()
    with screen.capture() as captured:
        grid = Grid("parameter", *findings.titles(found))
        for row in findings.parameter_rows(found):
            grid.add_row(*row)
        screen.print(grid)
        grid = Grid("cosine less cooldown", "95%", "zero inside")
        for row in findings.difference_rows(found):
            grid.add_row(*row)
        screen.print(grid)
        grid = Grid("source", "tokens", "measured", "predicted (95%)", "predicted less measured")
        for one in found.held:
            grid.add_row(*findings.held_row(one))
        screen.print(grid)
        left = words.grouped(found.excluded)
        for text in [*findings.paragraphs(found), *said, words.INTERVALS, *left]:
            screen.print(text, highlight=False, markup=False, soft_wrap=True)
    write(captured.get() + "".join(f"{path}\n" for path in (asked.page, asked.figure) if path))


def _optima(law: Laws | str, budgets: Sequence[float]) -> list[object]:
    if isinstance(law, str):
        return []
    return [asdict(found) for flops in budgets for found in law.optima(flops)]


def _read(asked: _Asked) -> Table:
    table = read(asked.paths, asked.counting)
    if asked.counting_given and not table.published:
        raise UserError(
            "--embedding, --attention: for published runs only; in a table, params and flops say "
            "themselves what they count"
        )
    return table


def _source(table: Table) -> list[str]:
    """Where the results are from, if that is known."""
    return [SOURCE] if table.published else []


def _said(table: Table, counting: Counting) -> list[str]:
    """What N and C count, and what else a reader must know of the files."""
    if not table.published:
        flops = "the column flops" if table.counted else "6 N D, as there is no column flops"
        return [f"N: the column params. C: {flops}.", *table.notes]
    return [
        f"{counting} Averages: measured on 32 batches, 0.0355 nats added for the difference to the "
        "whole validation set."
    ]


def _parse(arguments: Sequence[str]) -> _Asked:
    rest, budget = option(arguments, "--budget", "a number of FLOPs, such as 1e21")
    rest, page = file_option(rest, "--out", "one PAGE.html")
    rest, figure = file_option(rest, "--figure", "one FILE.svg")
    rest, counting = Counting.parse(rest)
    as_json = "--json" in rest
    rest = [word for word in rest if word != "--json"]
    for word in rest:
        if word.startswith("-"):
            known = ("--budget", "--out", "--figure", "--embedding", "--attention", "--json")
            raise UserError(f"{word}: unknown option; {did_you_mean(word, known)}")
    if not rest:
        raise UserError("laws: name a file with results; `llm-pretrain laws --help` says which")
    return _Asked(
        paths=[Path(word) for word in rest],
        counting=counting or Counting(),
        counting_given=counting is not None,
        budgets=[_budget(text) for text in budget.split(",")] if budget is not None else [],
        page=page,
        figure=figure,
        as_json=as_json,
    )


def _budget(text: str) -> float:
    try:
        flops = float(text)
    except ValueError:
        flops = math.nan
    if not (math.isfinite(flops) and flops > 0):
        raise UserError(f"--budget: '{text}' is no number of FLOPs; use 1e21, for example")
    return flops
