"""The command `schedule show`: the phases of a run in steps and tokens, and the curve."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from llm_pretrain import terminal
from llm_pretrain.config.arguments import check_flags, file_option, split_arguments
from llm_pretrain.config.compose import compose, override
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean, writing
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of

_POINTS = 1000


def schedule(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain schedule ARGUMENTS`; the exit code. Raises UserError for bad input."""
    action, *rest = arguments
    if action != "show":
        raise UserError(f"schedule {action}: no such command; {did_you_mean(action, ['show'])}")
    rest, png = file_option(rest, "--png", "one FILE.png")
    overrides, config_dir, flags = split_arguments(rest)
    check_flags("schedule show", flags, ["--json", "--png", "--config-dir"])
    if overrides and "=" not in overrides[0]:
        run = Run.open(Path(overrides[0]))
        config, title = override(run.config, overrides[1:], config_dir), str(run.path)
    else:
        config = compose(overrides, config_dir)
        title = config.run.name
    found = schedule_of(config)
    if png:
        _write(png, config, found, title)
    if flags:
        terminal.write(json.dumps(_data(config, found), indent=2) + "\n")
    else:
        _show(config, found, title)
    return EXIT_OK


def _rows(config: TrainConfig, found: Schedule) -> list[dict[str, Any]]:
    clock = clock_of(config)
    return [
        {
            "kind": phase.kind,
            "shape": phase.shape,
            "start": phase.start,
            "end": cut,
            "start_tokens": clock.tokens_at(phase.start),
            "end_tokens": clock.tokens_at(cut),
            "first_lr": found.lr(phase.start),
            "last_lr": found.lr(cut - 1),
        }
        for phase, cut in zip(found.phases, found.cuts, strict=True)
    ]


def _data(config: TrainConfig, found: Schedule) -> dict[str, Any]:
    return {"total": found.total, "phases": _rows(config, found), "lr": found.rates().tolist()}


def _show(config: TrainConfig, found: Schedule, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("phase", "shape", "steps", "tokens", "learning rate"):
        table.add_column(name, overflow="fold")
    for row in _rows(config, found):
        table.add_row(
            row["kind"],
            row["shape"],
            f"{row['start']:,} - {row['end']:,}",
            f"{row['start_tokens']:,} - {row['end_tokens']:,}",
            f"{row['first_lr']:.4g} - {row['last_lr']:.4g}",
        )
    screen = terminal.console()
    with screen.capture() as captured:
        screen.print(table)
        steps, rates = _curve(found)
        screen.print(terminal.draw({"learning rate by step": (steps.tolist(), rates.tolist())}))
    terminal.write(captured.get())


def _curve(found: Schedule) -> tuple[Any, Any]:
    """Steps and rates at which the curve is drawn, with both sides of every phase's edge."""
    edges = [edge for cut in found.cuts for edge in (cut - 1, cut) if edge < found.total]
    spread = np.linspace(0, found.total - 1, _POINTS, dtype=int).tolist()
    steps = np.unique(np.array([*spread, *edges], dtype=int))
    return steps, found.rates()[steps]


def _write(file: Path, config: TrainConfig, found: Schedule, title: str) -> None:
    # Takes a second, which the terminal's curve need not wait for.
    from matplotlib.figure import Figure  # noqa: PLC0415

    steps, rates = _curve(found)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="learning rate", title=title)
    axes.plot(steps, rates)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if not config.past or len({s.data.global_batch for s in config.past}) == 1:
        rate = clock_of(config).tokens_at(found.total) / found.total
        both = (partial(np.multiply, rate), partial(np.multiply, 1 / rate))
        top = axes.secondary_xaxis("top", functions=both)
        top.set_xlabel("tokens")
    with writing("--png", file):
        figure.savefig(file, dpi=150)
