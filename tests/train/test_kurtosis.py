"""The kurtosis that a run reports, against the blocks' outputs and another formula of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import prepare
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.runs import Run
from tests.ranks.commands import Zygote
from tests.support import CONF, metrics

Train = Callable[..., int]
SHORT = ("schedule.total=3 steps", "schedule.warmup=0 steps", "checkpoint.every=0 steps")
ON = "logger.kurtosis=true"
ROUNDED = 0.0006
"""Rows have three digits after the point."""


def rows(run: Path) -> list[dict]:
    """Those of training."""
    return [row for row in metrics(run) if "loss" in row]


def test_the_largest_of_the_blocks_outputs(train: Train, tmp_path: Path) -> None:
    """Around zero, as their RMS is: moments of the channels, mean over the last micro-batch."""
    place = tmp_path / "run"
    assert train(place, *SHORT, ON, "model.init_std=0.2", "model.layers=3") == 0
    config = Run.open(place).config
    model, loader = Transformer(config.model), Loader(config, prepare(config.data))
    model.initialize(config.run.seed)
    seen: list[np.ndarray] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _given, x: seen.append(x.double().numpy()))
    with torch.no_grad():
        model(torch.from_numpy(loader.batch(0))[-config.data.micro_batch :, :-1])
    truth = [
        (stats.moment(x, 4, axis=-1, center=0) / stats.moment(x, 2, axis=-1, center=0) ** 2).mean()
        for x in seen
    ]
    assert len(truth) == 3
    assert max(truth) - sorted(truth)[-2] > 10 * ROUNDED
    assert rows(place)[0]["kurtosis"] == pytest.approx(max(truth), abs=ROUNDED)
    centered = [stats.kurtosis(x, axis=-1, fisher=False).mean() for x in seen]
    assert max(centered) == pytest.approx(max(truth), rel=0.1)


def test_it_changes_nothing_and_is_absent_unless_asked_for(train: Train, tmp_path: Path) -> None:
    for name, ask in (("on", [ON]), ("off", [])):
        assert train(tmp_path / name, *SHORT, *ask) == 0
    on, off = rows(tmp_path / "on"), rows(tmp_path / "off")
    assert all("kurtosis" in row for row in on)
    assert [{k: v for k, v in row.items() if k != "kurtosis"} for row in on] == off


@pytest.mark.parametrize("cut", [["shard=2"], ["tensor=2"], ["context=2"]], ids=lambda c: c[0])
def test_two_ranks_find_the_same(
    zygote: Zygote, cache: Path, tmp_path: Path, cut: list[str]
) -> None:
    """Each looks at its part of the same tokens, in one pass."""
    common = ["experiment=tiny", f"--config-dir={CONF}", f"data.cache={cache}", *SHORT, ON]
    one, two = tmp_path / "one", tmp_path / "two"
    zygote.train(1, *common, f"run.dir={one}", "data.micro_batch=8")
    micro = 4 if cut == ["shard=2"] else 8
    fields = [f"engine.{field}" for field in cut]
    zygote.train(2, *common, f"run.dir={two}", f"data.micro_batch={micro}", *fields)
    mine, theirs = ([row["kurtosis"] for row in rows(run)] for run in (two, one))
    assert mine == pytest.approx(theirs, abs=2 * ROUNDED)
