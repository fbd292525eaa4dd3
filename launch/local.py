"""Train runs on this machine: one after the other in this process, or several at a time."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import submitit
from submitit.core.utils import UncompletedJobError

from launch.job import TrainJob
from llm_pretrain.errors import EXIT_BAD_INPUT, EXIT_CONTINUE, EXIT_OK

_POLL_SECONDS = 0.2


def run_all(paths: Sequence[Path], jobs: int) -> int:
    """Train the runs at `paths`, at most `jobs` at a time; the worst exit code.

    A run that was stopped by a signal stops the rest too: they are started by the next call. With 0
    jobs it only says how to start them.
    """
    if jobs == 0:
        for path in paths:
            print(f"ready: torchrun --nproc-per-node N -m llm_pretrain.train resume={path}")
        return EXIT_OK
    if jobs == 1 or len(paths) <= 1:
        return _one_by_one(paths)
    codes: list[int] = []
    waiting = list(paths)
    active: list[tuple[Path, submitit.Job[int]]] = []
    while waiting or active:
        while waiting and len(active) < jobs:
            slot = len(paths) - len(waiting)
            active.append((waiting[0], _submit(waiting.pop(0), jobs, _devices(slot))))
        done = [(path, job) for path, job in active if job.done()]
        active = [pair for pair in active if pair not in done]
        codes += [_result(path, job) for path, job in done]
        if EXIT_CONTINUE in codes:
            waiting.clear()
        time.sleep(_POLL_SECONDS)
    return EXIT_BAD_INPUT if EXIT_BAD_INPUT in codes else max(codes, default=EXIT_OK)


def _one_by_one(paths: Sequence[Path]) -> int:
    worst = EXIT_OK
    for path in paths:
        code = TrainJob(path, os.environ.get("CUDA_VISIBLE_DEVICES"))()
        worst = max(worst, code)
        if code == EXIT_CONTINUE:
            break
    return worst


def _devices(slot: int) -> str | None:
    """The GPU of the slot-th job, all of them taken in turn; None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch  # noqa: PLC0415  (only to count GPUs)

        names = [str(i) for i in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name]
    return names[slot % len(names)] if names else visible


def _submit(path: Path, jobs: int, devices: str | None) -> "submitit.Job[int]":
    executor = submitit.LocalExecutor(folder=path / "jobs")
    executor.update_parameters(timeout_min=7 * 24 * 60)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    previous = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = previous or str(threads)
    try:
        return executor.submit(TrainJob(path, devices))
    finally:
        if previous is None:
            del os.environ["OMP_NUM_THREADS"]


def _result(path: Path, job: "submitit.Job[int]") -> int:
    try:
        code: int = job.result()
    except UncompletedJobError as error:
        print(f"error: {path}: its process ended ({error})", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(f"{path}: {'finished' if code == EXIT_OK else f'exit code {code}'}", file=sys.stderr)
    return code
