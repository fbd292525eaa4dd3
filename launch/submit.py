"""Ask Slurm to train runs, each once, whoever else asks at the same time."""

import secrets
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from launch import slurm
from launch.profile import sbatch_options
from launch.queue import Queue
from launch.snapshot import snapshot
from llm_pretrain import atomic, lock
from llm_pretrain.branch.reconcile import UNDER_WAY
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.errors import RunInUseError, UserError
from llm_pretrain.records import Job, now
from llm_pretrain.runs import Run

JOBS = ".jobs"
CODE = ".code"
"""Folders beside the runs: of the jobs, and with snapshots of the code."""


class RefusedError(UserError):
    """A job that Slurm did not take."""

    def __init__(self, cluster: ClusterConfig, words: str) -> None:
        """`words`: Slurm's own."""
        super().__init__(f"cluster={cluster.name}: Slurm did not take the job: {words}")
        self.words = words


def submit(runs: Sequence[Run], cluster: ClusterConfig) -> list[Run]:
    """Submit a job for each run that has none waiting or running; these runs.

    All are in one folder. Several become an array. Raises UserError with Slurm's own words when it
    refuses; the runs then say that they were not submitted.
    """
    root = runs[0].path.absolute().parent
    with ExitStack() as claims:
        claimed = [run for run in runs if _claim(run, claims)]
        # Only now: another submitter may have been faster, and its job be done.
        queue = Queue.ask([run.job for run in claimed])
        wanted = [run for run in claimed if queue.status(run) not in UNDER_WAY]
        if not wanted:
            return []
        cluster = avoiding(cluster, wanted)
        code = snapshot(root / CODE)
        title = wanted[0].record.name if len(wanted) == 1 else root.name
        plan = Job(name=f"{title}.{secrets.token_hex(4)}", submitted=now(), code=str(code))
        jobs = [replace(plan, index=i) for i in range(len(wanted))]
        file = _prepare(wanted, cluster, plan)
        # Before Slurm knows: if this process is killed in between, the name finds the job.
        _write(wanted, jobs)
        try:
            first = sbatch(cluster, file, plan)
        except RefusedError as error:
            _write(wanted, [replace(job, error=error.words) for job in jobs])
            raise
        numbers = [f"{first}_{job.index}" for job in jobs] if len(jobs) > 1 else [first]
        pairs = zip(jobs, numbers, strict=True)
        _write(wanted, [replace(job, id=number) for job, number in pairs])
    return wanted


def _claim(run: Run, claims: ExitStack) -> bool:
    """Whether this process is the one that submits the run now."""
    try:
        claims.enter_context(lock.hold(run.claim_path))
    except RunInUseError:
        return False
    return True


def _write(runs: Sequence[Run], jobs: Sequence[Job]) -> None:
    for run, job in zip(runs, jobs, strict=True):
        run.write_job(job)


def script(cluster: ClusterConfig, root: Path, plan: Job, runs: int) -> str:
    """The text that sbatch is given for so many runs in the folder `root`."""
    folder = root / JOBS / plan.name
    task = ["-m", "launch.job", str(folder / "runs")]
    code, tries = Path(plan.code), cluster.slurm.tries
    return slurm.script(cluster, plan.name, code, folder, task, runs=runs, tries=tries)


def avoiding(cluster: ClusterConfig, runs: Sequence[Run]) -> ClusterConfig:
    """The cluster without the nodes that failed one of the runs before."""
    failed = {node for run in runs for node in run.failed_nodes()}
    options = sbatch_options(cluster.slurm)
    if not failed:
        return cluster
    # What the user excludes may be a range, in which commas do not separate names.
    asked = str(options.get("exclude", ""))
    exclude = ",".join([*([asked] if asked else []), *sorted(failed)])
    sbatch: dict[str, str | int | bool | None] = {**options, "exclude": exclude}
    return replace(cluster, slurm=replace(cluster.slurm, sbatch=sbatch))


def _prepare(runs: Sequence[Run], cluster: ClusterConfig, plan: Job) -> Path:
    """Make the folder of a submission: what it runs, the script, and later what its jobs say. The
    script's path."""
    root = runs[0].path.absolute().parent
    folder = root / JOBS / plan.name
    folder.mkdir(parents=True)
    listed = "".join(f"{run.path.absolute()}\n" for run in runs)
    atomic.write_text(folder / "runs", listed)
    atomic.write_text(folder / "script.sbatch", script(cluster, root, plan, len(runs)))
    for run in runs:
        (run.path / "jobs").mkdir(exist_ok=True)
        (run.path / "jobs" / plan.name).symlink_to(Path("..") / ".." / JOBS / plan.name)
    return folder / "script.sbatch"


def check_sbatch(cluster: ClusterConfig) -> None:
    """Raise UserError where no job can be submitted from."""
    if shutil.which("sbatch") is None:
        raise UserError(
            f"cluster={cluster.name}: sbatch is not on the PATH; submit from a login node of the "
            "cluster, or look at the script with --dry-run"
        )


def sbatch(cluster: ClusterConfig, file: Path, job: Job) -> str:
    """The number that Slurm gives to `job`, whose script is `file`. Raises RefusedError."""
    command = ["sbatch", "--parsable", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]
    # A controller under load may take a job and yet not answer in time.
    taken = Queue.ask([job]).number(job)
    if taken is None:
        raise RefusedError(cluster, done.stderr.strip().removeprefix("sbatch: error: "))
    return taken.partition("_")[0]
