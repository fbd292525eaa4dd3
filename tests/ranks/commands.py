"""Runs of one or several ranks in a second or two, forked from a process that is warm already."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

TIMEOUT = 240
"""Seconds after which the ranks of a command are killed, so that a hang fails one test only."""


@dataclass(frozen=True)
class Hit:
    """A signal for a rank, just before or just after the n-th call of 'module:function'."""

    function: str
    call: int
    when: str = "before"
    rank: int = 0
    signal: int = signal.SIGKILL
    """SIGSTOP: it keeps its connections until the other ranks have ended, and is killed then."""


@dataclass(frozen=True)
class Done:
    """How the ranks of a command ended, in order of rank."""

    codes: list[int]
    """Exit status; negative: the signal that killed the rank."""
    seconds: list[float]
    """From the start of the command to the end of the rank."""
    log: str
    """Prefix of the logs."""

    def output(self, rank: int = 0) -> str:
        """Standard output and errors of a rank."""
        return Path(f"{self.log}.{rank}").read_text()

    def __str__(self) -> str:
        """For the message of a failed assertion."""
        ends = "\n".join(self.output(r)[-4000:] for r, code in enumerate(self.codes) if code)
        return f"exit codes {self.codes}\n{ends}"


class Zygote:
    """Runs commands on forked ranks and kills them on request; see tests/ranks/zygote.py."""

    def __init__(self, process: "subprocess.Popen[str]", logs: Path) -> None:
        self._process = process
        self._logs = logs
        self._count = 0

    def run(
        self,
        size: int,
        *commands: Sequence[str],
        hit: Hit | None = None,
        kill: tuple[int, float] | None = None,
        cwd: Path = ROOT,
        limit: float = TIMEOUT,
    ) -> Done:
        """Run `llm-pretrain` commands one after the other on `size` ranks, in the folder `cwd`.

        `limit`: seconds after which the ranks are killed; `kill`: a rank, and the seconds after
        which that one is. With size 1 the process is on its own, without the variables of torchrun.
        """
        self._count += 1
        log = str(self._logs / f"{self._count}")
        victim = dataclasses.asdict(hit) if hit else None
        request = {"commands": commands, "size": size, "log": log, "hit": victim, "cwd": str(cwd)}
        pids = self._exchange(request)
        timers = [threading.Timer(limit, _kill, pids)]
        if kill is not None:
            timers.append(threading.Timer(kill[1], _kill, [pids[kill[0]]]))
        for timer in timers:
            timer.start()
        ends = self._exchange(None)
        for timer in timers:
            timer.cancel()
        codes, seconds = zip(*ends, strict=True)
        return Done(list(codes), list(seconds), log)

    def train(self, size: int, *arguments: str) -> Done:
        """Run `llm-pretrain train ARGUMENTS`; every rank must succeed."""
        done = self.run(size, ["train", *arguments])
        assert not any(done.codes), done
        return done

    def _exchange(self, request: object) -> list:
        assert self._process.stdin and self._process.stdout
        if request is not None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer: list = json.loads(self._process.stdout.readline())
        return answer


def _kill(*pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def zygote(corpus: Path, logs: Path, *modules: str) -> Iterator[Zygote]:
    """A zygote that has imported `modules` as well, with the tiny experiment's corpus."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ranks.zygote", *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TINY_CORPUS": str(corpus), "DS_ACCELERATOR": "cpu"},
    )
    try:
        yield Zygote(process, logs)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=TIMEOUT)
