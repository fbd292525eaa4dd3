"""The job that an executor runs: small enough to pickle, it holds a path and nothing else."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_pretrain.errors import (
    EXIT_BAD_INPUT,
    EXIT_CONTINUE,
    EXIT_OK,
    RunInUseError,
    guarded,
)

FOLDER = "LLM_PRETRAIN_JOB"
"""Variable with the folder in which the batch script keeps account of the job."""


@dataclass(frozen=True)
class TrainJob:
    """Trains the run in a directory, from the config that lies there."""

    path: Path
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of a local job; None: all that the machine has."""

    def __call__(self) -> int:
        """Train it; the exit code. A run that another process trains just now is left to it."""
        _undo_executor(self.devices)
        folder = os.environ.get(FOLDER)
        account = Path(folder) if folder and os.environ.get("SLURM_PROCID") == "0" else None
        if account is not None:
            _open_account(account, self.path)

        def train(_: Sequence[str]) -> int:
            from llm_pretrain.train.start import train_here  # noqa: PLC0415  (unpickling is cheap)

            try:
                return train_here(self.path, patience=_patience() if folder else 0.0)
            except RunInUseError as error:
                print(error, file=sys.stderr)
                return EXIT_OK

        code = guarded(train, [])
        if folder:
            # From here on a signal could only spoil the exit code of work that is done.
            _on_signals(signal.SIG_IGN)
        if account is not None and code in (EXIT_OK, EXIT_BAD_INPUT):
            (account / "stop").touch()
        if folder and code not in (EXIT_OK, EXIT_CONTINUE):
            # So that Slurm, too, says that it failed.
            sys.exit(code)
        return code


def _undo_executor(devices: str | None) -> None:
    """Take back what submitit set up and what is done otherwise here."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        # It would requeue on its own, and only from rank 0; the run watches signals once it trains,
        # and before that there is nothing to save.
        _on_signals(signal.SIG_DFL)
        return
    # Every GPU is hidden from a local job that did not ask for some.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices


def _on_signals(action: signal.Handlers) -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, action)


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
