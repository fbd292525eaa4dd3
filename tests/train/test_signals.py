"""Ctrl-C and SIGTERM on a real process: saved, exit code 75, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, assert_same_run, metrics, record, tiny


def start(place: Path, cache: Path) -> "subprocess.Popen[str]":
    """A training process that takes a while."""
    arguments = tiny(place, f"data.cache={cache}", "schedule.total=400 steps", "eval.sequences=4")
    return subprocess.Popen(
        [sys.executable, "-m", "llm_pretrain.train", *arguments, "eval.every=100 steps"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_steps(place: Path, count: int) -> None:
    """Wait until the run has measured `count` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        file = place / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("training did not start")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(
    tmp_path: Path, tiny_corpus: Path, cache: Path, number: signal.Signals
) -> None:
    process = start(tmp_path / "run", cache)
    wait_for_steps(tmp_path / "run", 5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    state = record(tmp_path / "run")
    assert (state["state"], state["reason"]) == ("interrupted", number.name)
    assert f"llm-pretrain train resume={tmp_path / 'run'}" in errors
    assert state["step"] == max(row["step"] for row in metrics(tmp_path / "run"))
    assert not (tmp_path / "run" / "lock").exists()
    again = start(tmp_path / "run", cache)
    assert again.wait(120) == 0
    whole = start(tmp_path / "whole", cache)
    assert whole.wait(120) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", 400)


@pytest.mark.slow
def test_a_run_in_use_names_its_holder(tmp_path: Path, tiny_corpus: Path, cache: Path) -> None:
    process = start(tmp_path / "run", cache)
    wait_for_steps(tmp_path / "run", 1)
    second = start(tmp_path / "run", cache)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"in use by process {process.pid}" in errors
    process.send_signal(signal.SIGKILL)
    process.wait()
