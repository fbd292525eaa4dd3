"""The command `branch`: plan shows, apply starts."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llm_pretrain.branch.reconcile import Row, apply, compare
from llm_pretrain.config.compose import compose_branch, override
from llm_pretrain.config.rules import check_branch_spec
from llm_pretrain.config.schema import BranchSpec
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of

_ACTIONS = ("plan", "apply")


def branch(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain branch ARGUMENTS`; the exit code. Raises UserError for bad input."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        from llm_pretrain.config.help import branch_help  # noqa: PLC0415  (only for help)

        print(branch_help())
        return EXIT_OK
    action, *overrides = arguments
    if action not in _ACTIONS:
        raise UserError(f"branch {action}: no such command; {did_you_mean(action, _ACTIONS)}")
    asked = compose_branch(overrides)
    if asked.parent is None:
        raise UserError("parent: missing; name the run to branch from: parent=runs/demo")
    place = Path(asked.parent)
    parent = Run.open(place if place.name not in ("", "..") else place.resolve())
    rows = compare(parent, _specs(parent, asked))
    show(parent, rows)
    if action == "plan":
        return EXIT_OK
    runs = apply(parent, rows)
    if not runs:
        print("nothing to start")
    from launch.local import run_all  # noqa: PLC0415  (plan starts nothing and needs no executor)

    return run_all([run.path for run in runs], _jobs(parent, asked))


def _specs(parent: Run, asked: BranchSpec) -> list[BranchSpec]:
    """What the command line asks for, else the plan in the run's own config."""
    if asked.at or asked.ends:
        check_branch_spec(asked, "branch")
        plain = BranchSpec(asked.at, asked.ends, asked.cooldown, asked.overrides)
        return [plain]
    if not parent.config.plan:
        raise UserError(
            f'at: missing; {parent.path} has no plan of its own. Write "at=[300 steps]" for '
            'where branches start, or "ends=[500 steps]" for their horizons'
        )
    return list(parent.config.plan)


def _jobs(parent: Run, asked: BranchSpec) -> int:
    chosen = [o for o in asked.overrides if o.lstrip("+").startswith("cluster")]
    return override(parent.config, chosen).cluster.jobs


def show(parent: Run, rows: Sequence[Row]) -> None:
    """Print the table of branches."""
    table = Table(title=f"Branches of {parent.path}", title_justify="left")
    for name in ("branch", "from", "to", "ends in", "state", "apply would"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            row.branch.path.name,
            str(row.branch.start),
            str(row.branch.end),
            schedule_of(row.branch.config).phases[-1].kind,
            row.status,
            {"none": "do nothing"}.get(row.action, row.action),
        )
    console = Console()
    console.print(table)
    for row in rows:
        if row.reason:
            text = f"{row.branch.path.name}: {row.reason}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
