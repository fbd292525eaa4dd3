"""The command `status`: how runs stand by their directories and by Slurm, side by side."""

from collections.abc import Sequence

from rich.table import Table

from launch.queue import Queue
from llm_pretrain.branch.tree import named_runs
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.runs import Run
from llm_pretrain.terminal import console


def status(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain status RUNS`; the exit code. Raises UserError when there is no run."""
    root, runs = named_runs("status", arguments)
    try:
        queue = Queue.ask([run.job for run in runs if run.identity])
    except UserError as error:
        print(f"Slurm does not answer, so this is what the directories say ({error})")
        queue = Queue.ask([])
    table = Table(title=str(root), title_justify="left")
    for name in ("run", "stands", "step", "run.json", "job", "Slurm", "because"):
        table.add_column(name, overflow="fold")
    for run in runs:
        table.add_row(run.path.name, *_cells(run, queue))
    console().print(table, markup=False)
    return EXIT_OK


def _cells(run: Run, queue: Queue) -> tuple[str, ...]:
    if run.identity is None:
        return ("unreadable", "", "", "", "", "run.json cannot be read")
    record, job = run.record, run.job
    entry = queue.entry(job)
    number = (queue.number(job) or "") if job else ""
    reasons = (job.error if job else None, entry.reason if entry else None, record.reason)
    return (
        queue.status(run),
        f"{record.step}/{record.total}",
        record.state,
        number,
        entry.state if entry else "",
        next((reason.splitlines()[0] for reason in reasons if reason), ""),
    )
