"""Train runs on this machine: one after the other in this process, or several at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.job import train_run
from llm_pretrain.errors import EXIT_BAD_INPUT, EXIT_CONTINUE, EXIT_FAILED, EXIT_OK
from llm_pretrain.train.interrupt import StopFlag, watch

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
    with watch() as stop:
        codes = _several(paths, jobs, stop)
    return EXIT_BAD_INPUT if EXIT_BAD_INPUT in codes else max(codes, default=EXIT_OK)


def _one_by_one(paths: Sequence[Path]) -> int:
    worst = EXIT_OK
    for path in paths:
        code = train_run(path)
        worst = max(worst, code)
        if code == EXIT_CONTINUE:
            break
    return worst


def _several(paths: Sequence[Path], jobs: int, stop: StopFlag) -> list[int]:
    """Each in a process of its own, which a stop is passed on to; their exit codes."""
    codes: list[int] = []
    waiting = list(paths)
    active: list[tuple[Path, subprocess.Popen[bytes]]] = []
    stopped = False
    while waiting or active:
        if stop.by and not stopped:
            stopped = True
            waiting.clear()
            for _, process in active:
                process.send_signal(signal.SIGTERM)
        while waiting and len(active) < jobs:
            slot = len(paths) - len(waiting)
            active.append((waiting[0], _start(waiting.pop(0), jobs, _devices(slot))))
        done = [(path, process) for path, process in active if process.poll() is not None]
        active = [pair for pair in active if pair not in done]
        codes += [_result(path, process.returncode) for path, process in done]
        if EXIT_CONTINUE in codes:
            waiting.clear()
        time.sleep(_POLL_SECONDS)
    return [*codes, EXIT_CONTINUE] if stopped else codes


def _devices(slot: int) -> str | None:
    """The GPU of the slot-th job, all of them taken in turn; None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch  # noqa: PLC0415  (only to count GPUs)

        names = [str(i) for i in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name]
    return names[slot % len(names)] if names else visible


def _start(path: Path, jobs: int, devices: str | None) -> "subprocess.Popen[bytes]":
    """A process that trains the run, out of reach of the terminal's Ctrl-C, which is passed on."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    log = _log(path)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.job", "--run", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _log(path: Path) -> Path:
    return path / "jobs" / "local.log"


def _result(path: Path, code: int) -> int:
    words = {EXIT_OK: "finished", EXIT_CONTINUE: "stopped; run it again to go on"}
    print(f"{path}: {words.get(code, f'exit code {code}; see {_log(path)}')}", file=sys.stderr)
    if code not in words:
        last = _log(path).read_text(errors="replace").strip().splitlines()[-1:]
        print(*last, sep="\n", file=sys.stderr)
    # Ended by a signal, whatever its number: lost, and nothing of it says that its input is bad.
    return code if code >= 0 else EXIT_FAILED
