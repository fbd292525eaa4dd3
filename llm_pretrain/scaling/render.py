"""Laws on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from llm_pretrain.scaling import words
from llm_pretrain.scaling.laws import Laws


def show(laws: Laws, console: Console, budgets: Sequence[float] = ()) -> None:
    """The law with its intervals, errors on what was left out, budgets, what is missing and why."""
    for text in words.law(laws):
        _say(console, text)
    if laws.parametric:
        table = Table("parameter", "value (95% interval)")
        for row in words.parameters(laws):
            table.add_row(*row)
        console.print(table)
    if laws.left_out:
        table = Table("left out", "results", "mean error", "mean size", "worst, nats")
        for one in laws.left_out:
            table.add_row(*words.left_out_row(one))
        console.print(table)
    lines = [*words.left_out(laws), words.cost(laws)]
    lines += [words.optimum(found) for flops in budgets for found in laws.optima(flops)]
    for text in [*lines, *laws.notes, *words.excluded(laws.excluded)]:
        _say(console, text)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
