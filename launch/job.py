"""The job that an executor runs: it is told a path and nothing else."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_pretrain.errors import (
    EXIT_BAD_INPUT,
    EXIT_CONTINUE,
    EXIT_OK,
    RunInUseError,
    guarded,
    leave,
)

FOLDER = "LLM_PRETRAIN_JOB"
"""Variable with the folder in which the batch script keeps account of the job."""


def main(arguments: Sequence[str]) -> int:
    """`python -m launch.job LIST`, a rank of a job of Slurm: train the run in the line of LIST that
    this job has in its array; the exit code. `python -m launch.job --run PATH`: train that one.

    No pickle, which Python in a container might not read, and which submitit puts into place only
    after Slurm has the job: a submitter that is killed then would leave a job without its task.
    """
    if arguments[0] == "--run":
        return train_run(Path(arguments[1]))
    runs = Path(arguments[0]).read_text().splitlines()
    path = Path(runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    account = Path(os.environ[FOLDER])
    first = os.environ["SLURM_PROCID"] == "0"
    if first:
        _open_account(account, path)
    code = train_run(path, _patience())
    # From here on a signal could only spoil the exit code of work that is done.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)
    if first and code in (EXIT_OK, EXIT_BAD_INPUT):
        (account / "stop").touch()
    # With another code than 0, srun would end the other ranks before they have closed.
    return EXIT_OK if code == EXIT_CONTINUE else code


def train_run(path: Path, patience: float = 0.0) -> int:
    """Train the run at `path` in this process; the exit code.

    A run that another process trains just now is left to it. `patience`: seconds to wait for that
    one to end.
    """

    def train(_: Sequence[str]) -> int:
        from llm_pretrain.train.session import train_here  # noqa: PLC0415  (torch)

        try:
            return train_here(path, patience=patience)
        except RunInUseError as error:
            print(error, file=sys.stderr)
            return EXIT_OK

    return guarded(train, [])


def _open_account(account: Path, path: Path) -> None:
    """Show the batch script the run, and forget earlier starts when it has got further since."""
    from llm_pretrain.checkpoint.store import CheckpointStore  # noqa: PLC0415
    from llm_pretrain.runs import Run  # noqa: PLC0415

    if not (account / "run").is_symlink():
        (account / "run").symlink_to(path)
    run = Run.open(path)
    sessions, saved = run.record.sessions, CheckpointStore(run.checkpoints).steps()
    if sessions and saved and saved[-1] > sessions[-1]["from_step"]:
        starts = (account / "starts").read_text().splitlines(keepends=True)
        (account / "starts").write_text(starts[-1])


def _patience() -> float:
    from llm_pretrain import lock  # noqa: PLC0415

    return lock.STALE_SECONDS + 2 * lock.HEARTBEAT_SECONDS


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
