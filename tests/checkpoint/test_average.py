"""Means of checkpoints: as folders of weights, and as the state of an engine on several ranks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.distributed.tensor import DTensor

from llm_pretrain.checkpoint.average import Mean, fill_mean
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import describe, keys
from llm_pretrain.config.layout import Layout
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.runs import Run
from llm_pretrain.world import World
from tests.checkpoint.states import CONFIG, leaves, meta, put_truth, truth
from tests.ranks.functions import run as on_ranks
from tests.test_export import make_run

Cli = Callable[..., int]
SMALL = ("model.width=32", "model.ffn=32", "model.layers=1")
ALONE = World(0, Layout(), torch.device("cpu"))


def with_checkpoints(place: Path, *steps: int) -> Run:
    """A run with a checkpoint at step 5, and at others with other values."""
    run = make_run(place, *SMALL)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Transformer(run.config.model).named_parameters()}
    for step in steps:
        state = {name: truth(name, shape, seed=step) for name, shape in shapes.items()}
        saver = Saver(CheckpointStore(run.checkpoints), ALONE)
        saver.start({"model": state}, meta(step))
        saver.wait()
    return run


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("asked", "steps"),
    [("steps=[5,12]", (5, 12)), ("last=3", (9, 12, 20)), ("steps=9, 20, 5", (5, 9, 20))],
)
def test_a_mean_is_that_of_the_exports(
    asked: str, steps: tuple[int, ...], cli: Cli, tmp_path: Path
) -> None:
    run = with_checkpoints(tmp_path / "run", 9, 12, 20)
    for step in steps:
        assert cli("export", str(run.path), str(tmp_path / f"{step}"), f"step={step}") == 0
    assert cli("average", str(run.path), str(tmp_path / "mean"), asked) == 0
    parts = [weights(tmp_path / f"{step}") for step in steps]
    mean = weights(tmp_path / "mean")
    assert mean.keys() == parts[0].keys()
    for name, value in mean.items():
        expected = np.mean([part[name].astype(np.float64) for part in parts], axis=0)
        assert np.array_equal(value, expected.astype(np.float32)), name
    for file in ("config.json", "tokenizer.json"):
        assert (
            (tmp_path / "mean" / file).read_text() == (tmp_path / "5" / file).read_text()
            if (5 in steps)
            else (tmp_path / "mean" / file).exists()
        )


def test_a_mean_of_several_runs(cli: Cli, tmp_path: Path) -> None:
    for name, step in (("a", 9), ("b", 12)):
        run = with_checkpoints(tmp_path / name, step)
        assert cli("export", str(run.path), str(tmp_path / f"{name}-hf")) == 0
    places = [str(tmp_path / name) for name in ("a", "b", "mean")]
    assert cli("average", *places, "last=1") == 0
    a, b, mean = (weights(tmp_path / name) for name in ("a-hf", "b-hf", "mean"))
    for name, value in mean.items():
        assert np.array_equal(value, ((a[name].astype(float) + b[name]) / 2).astype(np.float32))


def test_without_a_folder_it_is_named_after_what_is_averaged(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = with_checkpoints(tmp_path / "a", 9), with_checkpoints(tmp_path / "b", 12)
    assert cli("average", str(run.path), str(tmp_path / "mean"), "steps=[5,9]") == 0
    assert cli("average", str(run.path), "steps=[5,9]") == 0
    folder = tmp_path / "a-mean-5-9"
    assert f"{folder}: mean of {run.path} at 5, 9" in capsys.readouterr().out
    for name, value in weights(folder).items():
        assert np.array_equal(value, weights(tmp_path / "mean")[name]), name
    assert cli("average", str(run.path), str(other.path), "last=1") == 0
    assert (tmp_path / "a-mean-9-and-b-12").is_dir()
    assert cli("average", str(run.path), "steps=[5,9]") == 2
    assert "a-mean-5-9: exists already" in capsys.readouterr().err
    monkeypatch.chdir(other.path)
    assert cli("average", ".", "last=2") == 0
    assert (tmp_path / "b-mean-5-12").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage: llm-pretrain average RUN"),
        (("steps=[5,9]", "last=2"), "usage: llm-pretrain average RUN"),
        (("steps=[5]",), "a mean needs two checkpoints or more"),
        (("steps=[5,5]",), "steps: '[5,5]' is no list of different steps"),
        (("steps=[5,7]",), "no checkpoint at step 7; there are checkpoints at 5, 9"),
        (("last=3",), "last: 3 of"),
        (("last=all",), "last: 'all' is no number of checkpoints"),
        (("step=5",), "step: no such option; did you mean 'steps'"),
    ],
)
def test_refused(
    arguments: tuple[str, ...],
    message: str,
    cli: Cli,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = with_checkpoints(tmp_path / "run", 9)
    assert cli("average", str(run.path), str(tmp_path / "mean"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_a_damaged_checkpoint_is_not_averaged(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_checkpoints(tmp_path / "run", 9)
    (file,) = CheckpointStore(run.checkpoints).path(9).glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert cli("average", str(run.path), str(tmp_path / "mean"), "last=2") == 2
    assert f"damaged checkpoint ({file.name}: wrong checksum)" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_models_of_other_shapes_have_no_mean(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", *SMALL)
    make_run(tmp_path / "b", "model.width=32", "model.ffn=64", "model.layers=1")
    places = [str(tmp_path / name) for name in ("a", "b", "mean")]
    assert cli("average", *places, "last=1") == 2
    said = capsys.readouterr().err
    assert "blocks.0.mlp.down.weight is (32, 64), in" in said
    assert "only checkpoints of the same model have a mean" in said


def write_and_load(world: World, place: Path) -> float:
    """Two checkpoints with different values; an engine with their mean saves it as a third.

    The largest moment that it has then.
    """
    engine, saver = FsdpEngine(CONFIG, world), Saver(CheckpointStore(place), world)
    for step in (1, 2):
        put_truth(engine.state(), seed=step)
        saver.start(engine.state(), meta(step))
        saver.wait()
    folders = [CheckpointStore(place).path(step) for step in (1, 2)]
    names = {name for name in keys(folders[0]) if name.startswith("model.")}
    engine.load(lambda state: fill_mean(folders, state, group=world.io_group), names)
    saver.start(engine.state(), meta(3))
    saver.wait()
    moments = (leaf for _, leaf in leaves(engine.state()["optimizer"]))
    parts = (m.to_local() if isinstance(m, DTensor) else m for m in moments)
    return max(float(part.abs().max()) for part in parts if part.numel())


@pytest.mark.parametrize("layout", [Layout(), Layout(shard=3)], ids=["one", "shard 3"])
def test_an_engine_takes_over_a_mean(layout: Layout, tmp_path: Path) -> None:
    largest = on_ranks(tmp_path, layout, write_and_load, tmp_path / "checkpoints")
    assert largest == [0.0] * layout.size
    folder = CheckpointStore(tmp_path / "checkpoints").path(3)
    names = [n.removeprefix("model.") for n in describe(folder) if n.startswith("model.")]
    for name, value in Mean([folder]).read(names).items():
        full = f"model.{name}"
        sources = [truth(full, value.shape, seed=step).double() for step in (1, 2)]
        assert torch.equal(value, ((sources[0] + sources[1]) / 2).float()), name
