"""The command `tree`: who came from whom, where each stands, its losses."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.tree import Tree

from llm_pretrain.config.arguments import check_flags
from llm_pretrain.config.average import best_average
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.runs import Run, Seen, scan
from llm_pretrain.terminal import console


def tree(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain tree FOLDER`; the exit code. Raises UserError when there is no run."""
    root, runs = named_runs("tree", arguments)
    drawing = Tree(escape(str(root)))
    children: dict[str | None, list[Run]] = defaultdict(list)
    known = {run.identity for run in runs}
    for run in runs:
        parent = run.record.parent if run.identity else None
        children[parent.run if parent and parent.run in known else None].append(run)
    _grow(drawing, children, None)
    console().print(drawing, highlight=False)
    return EXIT_OK


def named_runs(command: str, arguments: Sequence[str]) -> tuple[Path, list[Seen]]:
    """The folder that is a command's only argument, and the runs in it.

    Raises UserError when it is not that, or holds no run.
    """
    check_flags(command, [word for word in arguments if word.startswith("-")], ["--help"])
    if len(arguments) != 1:
        raise UserError(
            f"{command}: takes one folder that holds runs, or one run; got {' '.join(arguments)}"
        )
    root = Path(arguments[0])
    runs = scan(root)
    if not runs:
        raise UserError(f"{root}: holds no run")
    return root, runs


def _grow(node: Tree, children: dict[str | None, list[Run]], of: str | None) -> None:
    for run in children[of]:
        if run.identity is None:
            node.add(escape(f"{run.path.name}  run.json cannot be read"))
        else:
            _grow(node.add(escape(describe(run))), children, run.identity)


def describe(run: Run) -> str:
    """A run in one line: name, origin, state, step, losses."""
    record, measured = run.record, run.newest_metrics("step", "loss")
    evaluated = run.newest_row("val_loss")
    parts = [record.name]
    if record.parent:
        parts.append(f"from step {record.parent.step}")
    parts += [run.status, f"step {measured.get('step', record.step)}/{record.total}"]
    losses = {**measured, **evaluated}
    parts += [f"{key} {losses[key]:.4f}" for key in ("loss", "val_loss") if key in losses]
    if best := best_average(evaluated):
        parts.append(f"averaged {best[1]:.4f} ({best[0]})")
    if record.reason:
        parts.append(record.reason.splitlines()[0])
    return "  ".join(parts)
