"""kill -9 at random moments: the same commands again always complete with the same result."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import read
from tests.support import CONF, ROOT, assert_same_run

KILLS = 20
BRANCHES = ("tiny.14-28.1-sqrt", "tiny.28-56.1-sqrt")


class Zygote:
    """Runs commands in forked children and kills them on request."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, commands: list[list[str]], log: Path, kill_after: float | None) -> int:
        """The exit code; -9 when the child was killed after `kill_after` seconds."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"commands": commands, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        timer = threading.Timer(kill_after or 0, os.kill, (pid, signal.SIGKILL))
        if kill_after is not None:
            timer.start()
        code = int(self._process.stdout.readline())
        timer.cancel()
        return code


@pytest.fixture
def zygote(tiny_corpus: Path) -> Iterator[Zygote]:
    with _zygote() as started:
        yield started


@contextmanager
def _zygote() -> Iterator[Zygote]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.train.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Zygote(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=60)


def commands(place: Path) -> list[list[str]]:
    """Prepare data, train a trunk with a plan, branch from it: one folder for everything."""
    plan = "plan=[{ends: [28 steps, 56 steps], cooldown: {length: 50%}}]"
    train = ["train", "experiment=tiny", f"--config-dir={CONF}", f"run.root={place}"]
    train += [f"data.cache={place / 'cache'}", plan, "checkpoint.every=7 steps", "run.name=tiny"]
    return [train, ["branch", "apply", f"parent={place / 'tiny'}"]]


def assert_nothing_is_half_written(place: Path) -> None:
    """Every file that a reader would open is whole."""
    for run in place.glob("tiny*"):
        json.loads((run / "run.json").read_text())
        read(run / "config.yaml")
        store = CheckpointStore(run / "checkpoints")
        for step in store.steps():
            store.verify(step)


@pytest.mark.slow
def test_twenty_kills(zygote: Zygote, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert zygote.run(commands(whole), tmp_path / "whole.log", None) == 0
    draw = random.Random(2024)
    kills = attempt = 0
    while kills < KILLS:
        attempt += 1
        place = tmp_path / f"parts{attempt}"
        log = tmp_path / f"parts{attempt}.log"
        while True:
            delay = draw.uniform(0.02, 1.5) if kills < KILLS else None
            code = zygote.run(commands(place), log, delay)
            assert code in (0, -signal.SIGKILL), log.read_text()
            assert_nothing_is_half_written(place)
            if code == 0:
                break
            kills += 1
        for name in ("tiny", *BRANCHES):
            end = 40 if name == "tiny" else int(name.split(".")[1].split("-")[1])
            assert_same_run(whole / name, place / name, end)
        left = [p for p in place.rglob(".*") if p.name not in (".metadata", ".lock.guard")]
        assert not left, f"leftovers of killed processes: {left}"
