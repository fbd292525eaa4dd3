"""Hand runs to what their cluster's profile says: this machine, or Slurm."""

import time
from collections.abc import Sequence
from pathlib import Path

from launch.local import run_all
from launch.profile import check_cluster
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.layout import Layout, passes
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_FAILED, EXIT_OK, UserError
from llm_pretrain.records import Job, now
from llm_pretrain.runs import Run

_LOOK_SECONDS = 10.0


def launch(runs: Sequence[Run], cluster: ClusterConfig, *, wait: bool = False) -> int:
    """Train `runs`, or ask for it; the worst exit code, 0 for what was only asked for.

    `wait`: until the jobs have ended, however often they are requeued. Raises UserError when
    nothing could come of it.
    """
    if cluster.launcher != "slurm":
        return run_all([run.path for run in runs], cluster.jobs)
    from launch.submit import submit  # noqa: PLC0415  (nothing of Slurm for local work)

    check_launch(cluster)
    for run in runs:
        check_ranks(run.config, cluster)
    submitted = {run.path for run in submit(runs, cluster)}
    for run in runs:
        job = run.job
        word = "submitted as" if run.path in submitted else "is in the hands of"
        print(f"{run.path}: {word} job {job.id if job else '?'}", flush=True)
    return _wait(runs) if wait else EXIT_OK


def preview(config: TrainConfig, runs: int = 1) -> str:
    """The script that sbatch would be given for so many runs like this one.

    Raises UserError where no job would be submitted.
    """
    from launch import submit  # noqa: PLC0415
    from launch.snapshot import place_of  # noqa: PLC0415

    cluster = config.cluster
    if cluster.launcher != "slurm":
        raise UserError(
            f"--dry-run: cluster={cluster.name} submits no job; choose a profile that does, or "
            "cluster.launcher=slurm"
        )
    check_cluster(cluster)
    check_ranks(config, cluster)
    root = Path(config.run.dir).absolute().parent
    name = f"{config.run.name if runs == 1 else root.name}.00000000"
    plan = Job(name=name, submitted=now(), code=str(place_of(root / submit.CODE)))
    return submit.script(cluster, root, plan, runs)


def check_launch(cluster: ClusterConfig) -> None:
    """Raise UserError when no job could be submitted from here: before anything is created."""
    if cluster.launcher != "slurm":
        return
    from launch.submit import check_sbatch  # noqa: PLC0415  (nothing of Slurm for local work)

    check_cluster(cluster)
    check_sbatch(cluster)


def check_ranks(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise UserError when a batch cannot be shared among the ranks of a job."""
    passes(config.data, Layout.of(config.engine, cluster.nodes * cluster.devices_per_node))


def _wait(runs: Sequence[Run]) -> int:
    """Until no job of the runs waits or runs; 0 when all are finished."""
    from launch.queue import Queue  # noqa: PLC0415

    while True:
        queue = Queue.ask([run.job for run in runs])
        words = [queue.status(run) for run in runs]
        if not set(words) & {"queued", "running"}:
            break
        time.sleep(_LOOK_SECONDS)
    for run, word in zip(runs, words, strict=True):
        print(f"{run.path}: {word}")
    return EXIT_OK if set(words) == {"finished"} else EXIT_FAILED
