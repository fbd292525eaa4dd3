"""What `llm-pretrain theory` shows to people: a table, and curves in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llm_pretrain.terminal import Points, draw
from llm_pretrain.theory import bound as bounds
from llm_pretrain.theory.bound import Array, Terms, last_iterate, moving
from llm_pretrain.theory.extend import Option, Trunk
from llm_pretrain.theory.transfer import terms_of

_POINTS = 120
_DRAWN = ("constant", "wsd-20%", "wsd-20%-1-sqrt", "cosine", "linear")


def bound(console: Console, data: Mapping[str, Any], multipliers: Array) -> None:
    """The bound of one schedule, and how it falls in the course of training."""
    table = _table(f"{data['schedule']}, {data['steps']:,} steps, D={data['D']:g} G={data['G']:g}")
    for name in ("", "base rate", "bound", "of it distance", "of it noise"):
        table.add_column(name, justify="right" if name else "left")
    terms = last_iterate(multipliers, norms=data["G"], distance=data["D"])
    for what, lr in (("as asked", data["lr"]), ("best", terms.optimal_rate)):
        if what == "best" or lr != terms.optimal_rate:
            parts = terms.distance / lr, lr * terms.noise
            table.add_row(what, *map(_number, (lr, sum(parts), *parts)))
    lr = data["averaged_optimal_lr"]
    table.add_row("best, averaged iterate", *map(_number, (lr, data["averaged_optimal_bound"])))
    console.print(table)
    _say(console, data["phases"])
    path = _path(multipliers, data["lr"], data["D"], data["G"])
    _draw(console, {f"bound after each step at rate {data['lr']:.4g}": path}, log_y=True)


def transfer(console: Console, data: Mapping[str, Any], old: Terms, new: Terms) -> None:
    """The transferred rate, and the bound of both schedules by rate."""
    table = _table("Learning rate")
    for name in ("", "schedule", "steps", "lr", "bound"):
        table.add_column(name, justify="left" if name in ("", "schedule") else "right")
    for key, change in (("from", 1.0), ("to", data["bound_ratio"])):
        side = data[key]
        cells = side["schedule"], f"{side['steps']:,}", _number(side["lr"]), f"{change:.4f}"
        table.add_row({"from": "tuned", "to": "transferred"}[key], *cells)
    console.print(table)
    _say(
        console,
        f"{data['ratio']:.4f} times the tuned rate. Bounds are relative to the tuned run's; with "
        f"the tuned rate as it is the new run's would be {data['bound_ratio_at_old_lr']:.4f}.",
    )
    scale = data["from"]["lr"] / old.optimal_rate
    low, high = sorted((old.optimal_rate, new.optimal_rate))
    rates = np.geomspace(low / 3, high * 3, _POINTS)
    curves = {
        f"{data[key]['schedule']}, {data[key]['steps']:,} steps": (
            (rates * scale).tolist(),
            [terms.at(rate) / old.optimal_bound for rate in rates.tolist()],
        )
        for key, terms in (("from", old), ("to", new))
    }
    console.print("Bound by learning rate:")
    _draw(console, curves, log_x=True)


def extend(
    console: Console, data: Mapping[str, Any], found: Sequence[Option], trunk: Trunk
) -> None:
    """The ways to carry on, and how the bound falls in each."""
    _say(
        console,
        f"{data['run']}: rate {data['lr']:g}, taken to be the best for {data['tuned']['steps']:,} "
        f"steps ({data['tuned']['phases']}).",
    )
    table = _table(f"Carried on to {data['to']:,} steps")
    for name in ("", "branch at", "then lr", "cooldown", "bound", "best lr / its lr"):
        table.add_column(name, justify="right" if name else "left")
    for option in data["options"]:
        mark = "* " if option["what"] == data["preferred"] else "  "
        table.add_row(
            mark + option["what"],
            f"{option['branch']:,}",
            f"{option['lr']:.4g}",
            f"{option['cooldown_steps']:,} ({100 * option['cooldown_share']:.1f}%)",
            f"{option['relative_bound']:.4f}",
            f"{option['best_lr_ratio']:.3f}",
        )
    fresh = data["new_linear_run"]
    table.add_section()
    cells = "0", f"{fresh['lr']:.4g}", f"{data['to']:,} (100%)", f"{fresh['relative_bound']:.4f}"
    table.add_row("  a new run, linear decay", *cells, "1.000")
    console.print(table)
    back = [option for option in found if option.branch < trunk.at]
    notes = [f"* least bound. Bounds are relative to '{found[0].what}'."]
    if back:
        notes.append(f"A branch before step {trunk.at:,} repeats steps that the run has done.")
    _say(console, " ".join(notes))
    target = terms_of(trunk.tuned, trunk.lr).optimal_rate
    rates = {option.what: moving(option.schedule.rates()) / trunk.lr for option in found}
    curves = {what: _path(values, target) for what, values in rates.items()}
    _draw(console, curves, log_y=True)


def compare(console: Console, data: Mapping[str, Any], schedules: Mapping[str, Array]) -> None:
    """All schedules in one table, the best first, and how the bound of some falls."""
    lr = data["lr"]
    table = _table(f"{data['steps']:,} steps, D={data['D']:g} G={data['G']:g}")
    names = ["schedule", "best lr", f"times {data['reference']}'s", "bound there", "above the best"]
    for name in [*names, *([f"bound at {lr:g}"] if lr else [])]:
        table.add_column(name, justify="left" if name == "schedule" else "right")
    for row in data["schedules"]:
        cells = [row["schedule"], _number(row["optimal_lr"]), f"{row['lr_ratio']:.3f}"]
        cells += [_number(row["optimal_bound"]), f"{100 * row['above_best']:.2f}%"]
        table.add_row(*cells, *([_number(row["bound"])] if lr else []))
    console.print(table)
    best = {row["schedule"]: row["optimal_lr"] for row in data["schedules"]}
    curves = {name: _path(schedules[name], best[name], data["D"], data["G"]) for name in _DRAWN}
    console.print("Bound after each step, each at its own best rate:")
    _draw(console, curves, log_y=True)


def _path(multipliers: Array, lr: float, distance: float = 1.0, norm: float = 1.0) -> Points:
    """The bound in the course of training, without its first twentieth."""
    total = len(multipliers)
    at = np.unique(np.linspace(max(1, total // 20), total, _POINTS).astype(np.int64))
    found = bounds.curve(multipliers, at, norms=norm, distance=distance).at(lr)
    return at.tolist(), found.tolist()


def _draw(
    console: Console, curves: Mapping[str, Points], *, log_x: bool = False, log_y: bool = False
) -> None:
    width = max(20, min(72, console.width - 20))
    console.print(draw(curves, width=width, log_x=log_x, log_y=log_y))


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")


def _number(value: float) -> str:
    return f"{value:.6g}"
