"""Several runs beside each other on this machine: stopped together, and gone on with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.local import run_all
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.runs import Run
from tests.support import ROOT

Cli = Callable[..., int]
Train = Callable[..., int]
ENDS = (30_010, 30_020)


@pytest.mark.slow
def test_a_stop_reaches_every_run(train: Train, cli: Cli, tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    assert train(trunk, "schedule.total=20 steps") == 0
    ask = ["branch", "apply", f"parent={trunk}", "at=[10 steps, 20 steps]", "cluster.jobs=2"]
    ask += ["cooldown.length=30000 steps", "logger.every=10 steps"]
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_pretrain.cli", *ask],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    branches = [tmp_path / f"trunk.{end - 30_000}-{end}.1-sqrt" for end in ENDS]
    deadline = time.monotonic() + 240
    while not all((b / "metrics.jsonl").exists() for b in branches):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 75, printed
    assert printed.count("stopped; run it again to go on") == 2
    for branch in branches:
        run = Run.open(branch)
        assert run.status == "interrupted"
        assert CheckpointStore(run.checkpoints).steps()[-1] == run.record.step


@pytest.mark.parametrize(("end", "code"), [("kill -9 $$", 1), ("exit 1", 1), ("exit 2", 2)])
def test_the_code_of_runs_that_did_not_end_well(
    end: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run may succeed when it is tried again; bad input may not."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho some reason\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        run.mkdir()
    assert run_all(runs, 2) == code


def test_what_went_wrong_is_told(
    train: Train, cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trunk = tmp_path / "trunk"
    assert train(trunk, "schedule.total=20 steps") == 0
    ask = ["branch", "apply", f"parent={trunk}", "at=[10 steps, 20 steps]"]
    assert cli(*ask, "cluster.jobs=0") == 0
    for step in (10, 20):
        for file in CheckpointStore(trunk / "checkpoints").path(step).glob("*.distcp"):
            file.write_bytes(b"damaged")
    assert cli(*ask, "cluster.jobs=2") == 2
    said = capfd.readouterr().err
    assert said.count("exit code 2; see ") == 2
    assert said.count("error: ") >= 2
