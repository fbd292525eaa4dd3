"""Loggers may fail without stopping a run, and metrics.jsonl has what scripts rely on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_pretrain.train import loggers

Train = Callable[..., int]
SHORT = ("schedule.total=3 steps", "schedule.warmup=0 steps")


def test_rows(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "run", "schedule.total=20 steps", "logger.every=5 steps") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [1, 5, 10, 15, 20]
    for row in training:
        assert row["tokens"] == row["step"] * 8 * 32
        assert row.keys() >= {"loss", "lr", "grad_norm", "tokens_per_second", "mfu"}
        assert 0 < row["mfu_causal"] < row["mfu"]
    assert [row["step"] for row in rows if "val_loss" in row] == [10, 20]
    assert training[-1]["loss"] < training[0]["loss"]


def test_both_loggers_write(train: Train, tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert train(place, *SHORT, "logger.wandb=true", "logger.tensorboard=true") == 0
    assert list((place / "wandb").glob("offline-run-*/*.wandb"))
    assert list((place / "tensorboard").glob("events*"))


class _Broken:
    def __init__(self, *_: object) -> None:
        self.rows = 0

    def log(self, row: dict[str, object]) -> None:
        self.rows += 1
        if self.rows == 3:
            raise ConnectionError("the server is gone")

    def close(self) -> None:
        raise AssertionError("closed after it failed")


def test_a_failing_logger_is_said_once_and_left_out(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(loggers, "_Wandb", _Broken)
    assert train(tmp_path / "run", "schedule.total=10 steps", "logger.wandb=true") == 0
    message = "logger wandb failed and is off for this session: the server is gone"
    assert capsys.readouterr().err.count(message) == 1
    assert message in (tmp_path / "run" / "train.log").read_text()
