"""How long it takes to compare a plan of 1,000 branches with what is there, and what it grows with.

A trunk of 10,000 checkpoints (empty folders: only their names are read) has a plan of 1,000
branches, which all exist. "reconcile" is what `branch plan` and `branch apply` do between reading
the parent and acting: which branches there should be, run.json, config.yaml and job.json of each,
how it stands, and whether it is the one that is meant. The ratio is of a plan and a family twice as
large. Commands are whole processes; the one for a single branch shows how much of that is not about
branches. In the last two rows each branch was handed to a Slurm that cannot be asked here; in the
very last no run.json has noted fingerprints either, so that every config.yaml is parsed. All files
were written shortly before, and are in the system's memory.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from benchmarks.result import Row, load_average, parser, ratios, report, workplace
from llm_pretrain.branch.reconcile import Look, compare, wanted
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import compose
from llm_pretrain.provenance import Code
from llm_pretrain.records import Job, Parent, new_record, now
from llm_pretrain.runs import Run

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = 10
"""For each branch."""
INTERVAL = 100


def family(place: Path, branches: int) -> Run:
    """A trunk in a folder of its own, with the branches of its plan."""
    starts = range(INTERVAL, INTERVAL * branches + 1, INTERVAL)
    plan = f"plan=[{{at: [{', '.join(f'{step} steps' for step in starts)}]}}]"
    total = INTERVAL * CHECKPOINTS * branches
    overrides = [f"run.dir={place / 'trunk'}", f"schedule.total={total} steps", plan]
    config = compose(["experiment=demo", *overrides])
    code = Code.current()
    parent = Run.create(config, new_record("trunk", total=total, code=code))
    store = CheckpointStore(parent.checkpoints)
    for step in range(INTERVAL, total + 1, INTERVAL):
        store.path(step).mkdir()
    link = parent.record.id
    for branch in wanted(parent, config.plan):
        record = new_record(
            branch.path.name,
            total=branch.end,
            parent=Parent(link, branch.start),
            parent_dir="../trunk",
            code=code,
        )
        run = Run.create(branch.config, record)
        run.append_metrics({"step": branch.start + 1, "loss": 3.0}, {"step": 2, "val_loss": 3.0})
    return parent


def reconcile(trunk: Path) -> float:
    """Seconds; raises RuntimeError when a branch is not recognised."""
    parent = Run.open(trunk)
    plan = parent.config.plan
    began = time.perf_counter()
    branches = wanted(parent, plan)
    places = [parent.path, *(branch.path for branch in branches)]
    rows = compare(parent, branches, Look.at(places))
    seconds = time.perf_counter() - began
    if not all(row.action in ("continue", "none") for row in rows):
        raise RuntimeError(f"{trunk}: a branch is not recognised: {rows}")
    return seconds


def forget_fingerprints(folder: Path) -> None:
    """Make every run.json one of a version that noted none."""
    for path in folder.glob("*/run.json"):
        data = json.loads(path.read_text())
        del data["fingerprints"]
        path.write_text(json.dumps(data))


def hand_over(folder: Path) -> None:
    """Write down a job for every branch."""
    for path in folder.glob("trunk.*"):
        Run(path).write_job(Job(name=path.name, submitted=now(), code="", id="1"))


def command(*arguments: str) -> float:
    """Wall time of `llm-pretrain ARGUMENTS`. Raises CalledProcessError when it fails."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llm_pretrain.cli", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def measure(place: Path, branches: int, repetitions: int) -> list[Row]:
    """Rows about so many branches."""
    once, twice = family(place / "once", branches), family(place / "twice", 2 * branches)
    family_of = f"{branches:,} branches"
    small: list[float] = []
    large: list[float] = []
    for _ in range(repetitions):
        small.append(reconcile(once.path))
        large.append(reconcile(twice.path))
    commands = {
        "branch plan, 1 branch": ("branch", "plan", f"parent={once.path}", "at=[100 steps]"),
        f"branch plan, {family_of}": ("branch", "plan", f"parent={once.path}"),
        f"tree, {family_of}": ("tree", str(once.path.parent)),
        f"status, {family_of}": ("status", str(once.path.parent)),
    }
    rows = [
        Row(f"reconcile, {family_of}", "s", small),
        Row(f"reconcile, {2 * branches:,} branches", "s", large),
        ratios("twice as many / as many", large, small),
        *(
            Row(name, "s", [command(*arguments) for _ in range(repetitions)])
            for name, arguments in commands.items()
        ),
    ]
    hand_over(once.path.parent)
    with mock.patch.dict(os.environ, PATH=""):  # no Slurm is found
        found = [reconcile(once.path) for _ in range(repetitions)]
        rows.append(Row(f"reconcile, {family_of}, handed over", "s", found))
        forget_fingerprints(once.path.parent)
        found = [reconcile(once.path) for _ in range(repetitions)]
        rows.append(Row(f"reconcile, {family_of}, no fingerprints", "s", found))
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("reconcile", __doc__).parse_args(arguments)
    load = load_average()
    with workplace(given.folder) as place:
        rows = measure(place.resolve(), *((10, 1) if given.quick else (1000, 7)))
    report("reconcile", arguments, rows, load)


if __name__ == "__main__":
    main(sys.argv[1:])
