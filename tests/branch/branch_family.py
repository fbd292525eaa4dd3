"""Trunks with many branches, which exist without having been trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_pretrain.branch.plan import Branch
from llm_pretrain.branch.reconcile import Look, Row, compare, wanted
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.provenance import Code
from llm_pretrain.records import Parent, new_record
from llm_pretrain.runs import Run, Seen

CODE = Code({}, {})


def trunk(place: Path, branches: int, *overrides: str) -> Run:
    """A run with 10 checkpoints for each of its branches, all empty, and its branches as its plan.

    Two of three branches start at a checkpoint.
    """
    starts = ", ".join(f"{step} steps" for step in range(70, 70 * branches + 1, 70))
    plan = f"plan=[{{at: [{starts}], cooldown: {{length: 20 steps}}}}]"
    config = compose(
        ["experiment=demo", f"run.dir={place}", "schedule.total=1000000 steps", plan, *overrides]
    )
    run = Run.create(config, new_record("trunk", total=10**6, code=CODE))
    for step in range(20, 20 * 10 * branches + 1, 20):
        CheckpointStore(run.checkpoints).path(step).mkdir()
    return run


def create(trunk: Run, branch: Branch, config: TrainConfig | None = None, **record: Any) -> Run:
    """The directory of a branch, of another config or with other fields of its record if given."""
    made = new_record(
        branch.path.name,
        total=branch.end,
        parent=Parent(trunk.record.id, branch.start),
        parent_dir=f"../{trunk.path.name}",
        parent_checkpoint="0" * 64,
        code=CODE,
    )
    return Run.create(config or branch.config, replace(made, **record))


def family(place: Path, branches: int) -> tuple[Run, list[Branch]]:
    """A trunk, and the branches of its plan; every other one exists, half of these 'running'."""
    parent = trunk(place / f"trunk{branches}", branches)
    found = wanted(parent, parent.config.plan)
    for i, branch in enumerate(found[::2]):
        create(parent, branch, state="running" if i % 2 else "created")
    return parent, found


def compared(parent: Run) -> list[Row]:
    """What `branch plan` would show."""
    branches = wanted(parent, parent.config.plan)
    found = {b.path: Seen(b.path) for b in branches if Run.exists(b.path)}
    return compare(parent, branches, Look(found, lambda run: run.status))
