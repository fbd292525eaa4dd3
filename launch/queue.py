"""What Slurm says of jobs, in one look for any number of them, and what that says of runs."""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from llm_pretrain import lock
from llm_pretrain.errors import UserError
from llm_pretrain.records import Job
from llm_pretrain.runs import Run

Phase = Literal["waiting", "running", "ended"]

_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_RUNNING = (
    *("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT"),
    *("STOPPED", "SUSPENDED"),
)
_SACCT = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,JobName,State")
_SECONDS = 60
_CHUNK = 500
"""Job numbers on one command line."""


@dataclass(frozen=True)
class Entry:
    """A job as Slurm describes it."""

    phase: Phase
    state: str
    """Slurm's own word."""
    reason: str = ""
    """Why it waits."""


class Queue:
    """The jobs of one look at Slurm."""

    def __init__(self, entries: dict[str, Entry], names: dict[str, str], *, asked: bool) -> None:
        """`entries`: by number. `names`: the number of the first job of each name."""
        self._entries, self._names, self._asked = entries, names, asked

    @classmethod
    def ask(cls, jobs: Iterable[Job | None]) -> "Queue":
        """Ask about these jobs, if there are any and Slurm is there to be asked.

        Raises UserError when it does not answer.
        """
        wanted = [job for job in jobs if job is not None and job.error is None]
        if not wanted or shutil.which("squeue") is None:
            return cls({}, {}, asked=False)
        entries: dict[str, Entry] = {}
        names: dict[str, str] = {}
        columns = "--format=%i|%T|%j|%r"
        for number, state, name, reason in _lines(
            ["squeue", "--me", "--array", "--noheader", columns]
        ):
            entries[number] = _entry(state, reason)
            names.setdefault(name, number)
        gone = [job for job in wanted if (job.id or names.get(job.name)) not in entries]
        for number, name, state in _ended(gone):
            entries.setdefault(number, _entry(state))
            names.setdefault(name, number)
        return cls(entries, names, asked=True)

    def entry(self, job: Job | None) -> Entry | None:
        """What Slurm knows of a job; None: nothing, or there was none."""
        if job is None or job.error is not None:
            return None
        return self._entries.get(self.number(job) or "")

    def number(self, job: Job) -> str | None:
        """The number of a job, also where its submitter could not write it down."""
        if job.id is not None or job.name not in self._names:
            return job.id
        first, _, place = self._names[job.name].partition("_")
        return f"{first}_{job.index}" if place else first

    def status(self, run: Run) -> str:
        """How a run stands, in one word: created, queued, running, interrupted, preempted, failed,
        lost, finished, or that it was "not submitted"."""
        state, job, entry = run.record.state, run.job, self.entry(run.job)
        alive = lock.holder(run.lock_path) is not None
        rules = (
            (state == "finished", "finished"),
            (alive or (entry is not None and entry.phase == "running"), "running"),
            (entry is not None and entry.phase == "waiting", "queued"),
            (job is not None and job.error is not None, "not submitted"),
            (entry is not None and entry.state == "PREEMPTED", "preempted"),
            (state == "running", "lost"),
            (state != "created" or job is None, state),
            # It was handed over and never began.
            (entry is not None, "failed"),
            # Slurm forgets jobs, if only after days.
            (self._asked, "lost"),
        )
        return next((word for holds, word in rules if holds), "queued")


def _ended(jobs: Sequence[Job]) -> Iterator[list[str]]:
    """Number, name and state of jobs that are no longer in the queue, from accounting.

    It may be switched off, and what is in the queue must do then.
    """
    if not jobs:
        return
    first = min(datetime.fromisoformat(job.submitted) for job in jobs)
    since = (first.astimezone() - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S")
    numbers = [job.id for job in jobs if job.id]
    names = sorted({job.name for job in jobs if not job.id})
    for option, values in (("--jobs", numbers), ("--name", names)):
        for begin in range(0, len(values), _CHUNK):
            chosen = f"{option}={','.join(values[begin : begin + _CHUNK])}"
            yield from _lines([*_SACCT, f"--starttime={since}", chosen], may_fail=True)


def _entry(state: str, reason: str = "") -> Entry:
    word = state.split(maxsplit=1)[0]  # of "CANCELLED by 1000"
    phase: Phase = "waiting" if word in _WAITING else "running" if word in _RUNNING else "ended"
    return Entry(phase, word, "" if reason == "None" else reason)


def _lines(command: Sequence[str], *, may_fail: bool = False) -> list[list[str]]:
    """The lines of a command's output, cut at the bars."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]}: {error}") from error
    if done.returncode and not may_fail:
        raise UserError(f"{command[0]}: {done.stderr.strip()}")
    return [line.split("|") for line in done.stdout.splitlines() if line]
