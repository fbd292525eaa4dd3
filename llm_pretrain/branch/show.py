"""The table that `branch plan` and `branch apply` print."""

from collections.abc import Sequence

from rich.table import Table

from llm_pretrain.branch.forecast import Forecast
from llm_pretrain.branch.reconcile import Row
from llm_pretrain.runs import Run
from llm_pretrain.terminal import console


def show(parent: Run, rows: Sequence[Row], expected: Forecast) -> None:
    """Print how the branches stand, what would be done, and at which loss they may end."""
    table = Table(title=f"Branches of {parent.path}", title_justify="left")
    names = ["branch", "from", "to", "ends in", "state", "apply would"]
    for name in [*names, *(["predicted loss"] if expected.predictions else [])]:
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = [
            row.branch.path.name,
            str(row.branch.start),
            str(row.branch.end),
            "average" if row.branch.config.mean_of else row.branch.schedule.phases[-1].kind,
            row.status,
            {"none": "do nothing"}.get(row.action, row.action),
        ]
        if expected.predictions:
            cells.append(_predicted(row, expected))
        table.add_row(*cells)
    screen = console()
    screen.print(table)
    reasons = [f"{row.branch.path.name}: {row.reason}" for row in rows if row.reason]
    if expected.predictions:
        reasons.append("predicted loss: of the last validation, with an interval of 80%")
    if expected.reason:
        reasons.append(f"no predicted losses: {expected.reason}")
    for text in [*reasons, *expected.cautions]:
        screen.print(text, highlight=False, markup=False, soft_wrap=True)


def _predicted(row: Row, expected: Forecast) -> str:
    found = expected.predictions.get(row.branch.path)
    return f"{found.loss:.4f} ({found.low:.4f} to {found.high:.4f})" if found else ""
