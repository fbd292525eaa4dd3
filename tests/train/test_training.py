"""The loop against a plain PyTorch one, accumulation, clipping, evaluation, NaN, compile."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import prepare
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.train.hardware import PEAK_BF16, peak
from tests.support import metrics, record

Train = Callable[..., int]
ONE_STEP = ("schedule.total=1 steps", "schedule.warmup=0 steps")


def test_equals_a_plain_loop(train: Train, tmp_path: Path) -> None:
    """The same model trained by twenty lines of PyTorch has the same losses."""
    place = tmp_path / "run"
    assert train(place, "schedule.cooldown.length=25%", "optimizer.grad_clip=0.5") == 0
    config = Run.open(place).config
    loader = Loader(config, prepare(config.data))
    model = Transformer(config.model)
    model.initialize(config.run.seed)
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and n != "embedding.weight"]
    others = [p for n, p in named.items() if p.ndim != 2 or n == "embedding.weight"]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95), foreach=False,
    )  # fmt: skip
    rows = iter([row for row in metrics(place) if "loss" in row])
    for step in range(40):
        tokens = torch.from_numpy(loader.batch(step))
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = schedule_of(config).lr(step)
        optimizer.step()
        optimizer.zero_grad()
        row = next(rows)
        assert row["loss"] == pytest.approx(loss.item(), rel=2e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=2e-4)


def test_accumulation_does_not_change_the_result(train: Train, tmp_path: Path) -> None:
    for micro in (1, 8):
        assert train(tmp_path / str(micro), f"data.micro_batch={micro}") == 0
    for a, b in zip(metrics(tmp_path / "1"), metrics(tmp_path / "8"), strict=True):
        assert a == pytest.approx(b, rel=1e-4 * a["step"])
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=2e-5)


def test_the_evaluation_is_the_mean_over_held_out_sequences(train: Train, tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert (
        train(place, "schedule.total=1 steps", "schedule.warmup=0 steps", "optimizer.lr=1e-12") == 0
    )
    config = Run.open(place).config
    loader = Loader(config, prepare(config.data))
    model = Transformer(config.model)
    model.initialize(config.run.seed)
    tokens = torch.from_numpy(loader.validation_batch(0, 20))
    with torch.no_grad():
        losses = model(tokens[:, :-1], tokens[:, 1:]).mean(dim=1).double()
    row = metrics(place)[-1]
    assert row["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert row["val_stderr"] == pytest.approx(losses.std().item() / math.sqrt(20), rel=1e-4)


def test_bf16_is_close_to_fp32_but_not_equal(train: Train, tmp_path: Path) -> None:
    for name in ("fp32", "bf16"):
        assert train(tmp_path / name, f"precision={name}") == 0
    fp32, bf16 = metrics(tmp_path / "fp32")[-1], metrics(tmp_path / "bf16")[-1]
    assert fp32["val_loss"] != bf16["val_loss"]
    assert fp32["val_loss"] == pytest.approx(bf16["val_loss"], rel=0.01)


def test_a_loss_that_is_no_number_stops_the_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "optimizer.lr=1e30", "optimizer.grad_clip=0") == 2
    assert "the gradient norm nan at step 2" in capsys.readouterr().err
    assert record(tmp_path / "run")["state"] == "failed"
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        assert json.loads((step / "meta.json").read_text())["step"] < 10


@pytest.mark.slow
def test_compile(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "eager", "schedule.total=5 steps") == 0
    assert train(tmp_path / "compiled", "schedule.total=5 steps", "engine.compile=true") == 0
    for a, b in zip(metrics(tmp_path / "eager"), metrics(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_the_peak_of_an_unknown_device_is_measured_and_said() -> None:
    measured = peak(torch.device("cpu"), torch.float32)
    assert measured.flops > 1e9
    assert "measured" in measured.source
    assert "CPU" not in PEAK_BF16


def test_initial_loss_is_that_of_a_uniform_guess(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *ONE_STEP) == 0
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(512), abs=0.1)
