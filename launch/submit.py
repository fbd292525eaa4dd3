"""Ask Slurm to train runs, each once, whoever else asks at the same time."""

import contextlib
import io
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch import slurm
from launch.job import TrainJob
from launch.queue import Queue
from launch.snapshot import snapshot
from llm_pretrain import lock
from llm_pretrain.branch.reconcile import UNDER_WAY
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.errors import RunInUseError, UserError
from llm_pretrain.runs import Job, Run, now

JOBS = ".jobs"
CODE = ".code"
"""Folders beside the runs: of submitit, and with snapshots of the code."""


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
        code = snapshot(root / CODE)
        title = wanted[0].record.name if len(wanted) == 1 else root.name
        plan = Job(name=f"{title}.{secrets.token_hex(4)}", submitted=now(), code=str(code))
        jobs = [replace(plan, index=i) for i in range(len(wanted))]
        # Before Slurm knows: if this process is killed in between, the name finds the job.
        _write(wanted, jobs)
        try:
            numbers = _sbatch(wanted, cluster, plan, root / JOBS / "%j")
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            _write(wanted, [replace(job, error=str(error).strip()) for job in jobs])
            raise UserError(
                f"cluster={cluster.name}: Slurm did not take the job: {str(error).strip()}"
            ) from error
        pairs = zip(jobs, numbers, strict=True)
        _write(wanted, [replace(job, id=number) for job, number in pairs])
        for run, number in zip(wanted, numbers, strict=True):
            _link(run.path / "jobs" / number, root / JOBS / number)
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


def _sbatch(runs: Sequence[Run], cluster: ClusterConfig, plan: Job, folder: Path) -> list[str]:
    """The numbers of the jobs."""
    executor = submitit.SlurmExecutor(folder=folder, python=slurm.python(cluster))
    executor.update_parameters(**slurm.parameters(cluster, plan.name, Path(plan.code), folder))
    # submitit prints what sbatch says before it raises an error with the same words.
    with contextlib.redirect_stderr(io.StringIO()), executor.batch():
        jobs = [executor.submit(TrainJob(run.path.absolute())) for run in runs]
    return [job.job_id for job in jobs]


def _link(link: Path, target: Path) -> None:
    """Show in a run's directory where the output of its job is."""
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(Path("..") / ".." / target.relative_to(link.parents[2].absolute()))
