"""A process that knows when its job will be killed ends before that, after a save."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.errors import EXIT_CONTINUE
from tests.support import record

RESERVE = 20
"""Seconds that training leaves unused."""


def test_it_stops_while_there_is_time_to_save(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PRETRAIN_END", str(time.time() + RESERVE + 3))
    rare = ("logger.every=1000 steps", "eval.every=0 steps", "checkpoint.every=0 steps")
    assert train(tmp_path, "schedule.total=100000 steps", *rare) == EXIT_CONTINUE
    said = record(tmp_path)
    assert (said["state"], said["reason"]) == ("interrupted", "the job's time limit")
    assert 0 < said["step"] < 100000
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [said["step"]]
