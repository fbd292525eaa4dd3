"""The command import: the run begins where the weights are, and trains on from there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support import CONF, metrics, record

Cli = Callable[..., int]
Train = Callable[..., int]


def test_what_was_exported_goes_on(
    train: Train, cli: Cli, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, hf, again = tmp_path / "first", tmp_path / "hf", tmp_path / "again"
    assert train(first, "model.width=48", "schedule.total=20 steps") == 0
    assert cli("export", str(first), str(hf)) == 0
    ask = ["experiment=tiny", f"--config-dir={CONF}", f"data.cache={cache}", "eval.every=20 steps"]
    ask += ["schedule.total=40 steps", "schedule.warmup=20 steps"]
    assert cli("import", str(hf), str(again), *ask, "model.ffn=3") == 2
    assert "model.ffn: the imported weights decide it" in capsys.readouterr().err
    assert not again.exists()
    assert cli("import", str(hf), str(again), *ask) == 0
    assert cli("import", str(hf), str(again), *ask) == 2
    assert "exists already" in capsys.readouterr().err
    assert record(again)["state"] == "created"
    assert (again / "tokenizer.json").read_text() == (first / "tokenizer.json").read_text()

    assert cli("export", str(again), str(tmp_path / "back"), "step=0") == 0
    there, back = (load_file(f / "model.safetensors") for f in (hf, tmp_path / "back"))
    assert there.keys() == back.keys()
    assert all((there[name] == back[name]).all() for name in there)

    assert cli("train", f"resume={again}") == 0
    said = (again / "train.log").read_text()
    assert "adamw: starts anew, the checkpoint has weights only" in said
    losses = {row["step"]: row["val_loss"] for row in metrics(again) if "val_loss" in row}
    ended = [row["val_loss"] for row in metrics(first) if "val_loss" in row][-1]
    # A run from its own initial values has the loss of `first` there; this one was ahead.
    assert losses[20] < ended - 0.05
    assert record(again)["step"] == 40


def test_what_is_no_llama(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("import", str(tmp_path), str(tmp_path / "run")) == 2
    assert "config.json: cannot be read" in capsys.readouterr().err
    assert cli("import", str(tmp_path)) == 2
    assert "usage: llm-pretrain import HF_FOLDER RUN" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
