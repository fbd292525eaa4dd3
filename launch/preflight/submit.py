"""A preflight asked for on a login node: a job on the nodes that it is about."""

import json
import math
import re
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch import slurm
from launch.preflight.report import EXIT_UNFIT, NAME
from launch.profile import check_cluster
from launch.queue import Queue
from launch.snapshot import snapshot
from launch.submit import CODE, JOBS, check_sbatch, sbatch
from llm_pretrain import atomic
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_FAILED, EXIT_OK
from llm_pretrain.records import Job, now

_LOOK_SECONDS = 2.0
_SPARE_SECONDS = 300
"""For Slurm, the container and Python to start, beside the time of the checks."""


def submit(
    config: TrainConfig, arguments: Sequence[str], out: Path | None, seconds: float, *, wait: bool
) -> int:
    """Ask Slurm for the nodes of `config` and check them; the exit code, 0 for what was asked for.

    `arguments`: overrides and flags for the ranks. `out`: folder of the report, else that of the
    job. `wait`: for the verdict, which is then printed. Raises UserError with Slurm's own words
    when it refuses.
    """
    cluster = config.cluster
    limit = time.strftime("%H:%M:%S", time.gmtime(math.ceil(seconds) + _SPARE_SECONDS))
    options = {**cluster.slurm.sbatch, "time": limit}
    cluster = replace(cluster, slurm=replace(cluster.slurm, sbatch=options))
    check_cluster(cluster)
    check_sbatch(cluster)
    root = Path(config.run.root).absolute()
    job = Job(f"preflight.{secrets.token_hex(4)}", now(), str(snapshot(root / CODE)))
    folder = root / JOBS / job.name
    folder.mkdir(parents=True)
    report = (out or folder).absolute()
    task = ["-m", "launch.preflight", *arguments, f"--out={report}", f"--seconds={seconds:.0f}"]
    file = folder / "script.sbatch"
    atomic.write_text(file, slurm.script(cluster, job.name, Path(job.code), folder, task))
    job = replace(job, id=sbatch(cluster, file, job))
    print(f"submitted as job {job.id}; the report will be in {report}", flush=True)
    return _wait(job, folder, report) if wait else EXIT_OK


def _wait(job: Job, folder: Path, report: Path) -> int:
    """Print what rank 0 says once the job has ended; the exit code by the verdict."""
    while (entry := Queue.ask([job]).entry(job)) is not None and entry.phase != "ended":
        time.sleep(_LOOK_SECONDS)
    log = folder / f"{job.id}_0_log.out"
    if log.exists():
        print(re.sub(r"^ *0: ", "", log.read_text(), flags=re.MULTILINE), end="")
    try:
        said = json.loads((report / NAME).read_text())
    except FileNotFoundError:
        said = None
    if said is None or said["created"] < job.submitted:
        state = entry.state if entry else "no longer known to Slurm"
        print(f"error: job {job.id} is {state} and left no report; see {folder}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK if said["fit"] else EXIT_UNFIT
