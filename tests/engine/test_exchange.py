"""A checkpoint does not know who wrote it: every engine goes on where another stopped."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.runs import Run
from tests.checkpoint.states import meta
from tests.engine.layouts import (
    LAYOUTS,
    STATE_BOUND,
    STEPS,
    Fleet,
    assert_close_states,
    differences,
    fp32_bound,
    fsdp,
)
from tests.engine.zero import alone
from tests.support import assert_same_run, record, tensors

NAMES = ["one process", "FSDP 2", "FSDP 4", "HSDP 2x2", "tensor 2"]
NAMES += ["ZeRO-1 2", "ZeRO-2 2", "ZeRO-3 2"]
OPTIONS = ("offload=all", "reshard_after_forward=false", "accumulate=whole", "prefetch=1")
OPTIONS += ("recompute=block",)
WITH_OPTIONS = {
    "FSDP 2 with options": fsdp(2, *OPTIONS),
    "HSDP 2x2 with options": fsdp(4, "replicate=2", "shard=2", *OPTIONS),
}
RUNS = LAYOUTS | WITH_OPTIONS
STOP = STEPS // 2
EVERY = [f"{field}={STOP} steps" for field in ("eval.every", "checkpoint.every")]


def trained(fleet: Fleet, name: str, steps: int) -> Path:
    """A finished run of so many steps, with checkpoints at the middle and the end."""
    keep = f"checkpoint.keep_every={STOP} steps"
    total = f"schedule.total={steps} steps"
    return fleet.train(RUNS[name], total, keep, *EVERY, experiment="tiny")


def assert_goes_on(run: Path, whole: Path, step: int) -> None:
    """A run went on at the stop; losses, norms and last state are those of one without it."""
    assert record(run)["sessions"][-1]["from_step"] == STOP
    for at, key, difference in differences(run, whole):
        assert difference <= fp32_bound(at), f"{key} at step {at}: {difference:.1e}"
    assert_close_states(run, whole, step, STATE_BOUND)


@pytest.mark.slow
@pytest.mark.parametrize(
    "writer,reader",
    [
        *itertools.product(NAMES, NAMES),
        *((writer, reader) for writer in WITH_OPTIONS for reader in (writer, "FSDP 2")),
    ],
)
def test_resumed_by_another(fleet: Fleet, tmp_path: Path, writer: str, reader: str) -> None:
    run, layout = tmp_path / "run", RUNS[reader]
    shutil.copytree(trained(fleet, writer, STOP), run)
    total = f"schedule.total={STEPS} steps"
    fleet.command(layout, f"resume={run}", total, *layout.arguments)
    assert_goes_on(run, trained(fleet, "one process", STEPS), STEPS)
    if reader == writer:
        assert_same_run(run, trained(fleet, writer, STEPS), STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_at_the_stop(fleet: Fleet, name: str) -> None:
    """Every writer leaves the same names, shapes, types and, but for rounding, values."""
    whole = trained(fleet, "one process", STEPS)
    assert_close_states(trained(fleet, name, STOP), whole, STOP, STATE_BOUND)


def branched(fleet: Fleet, place: Path, writer: str, reader: str) -> Path:
    """A cooldown of four steps, trained by `reader`, from where `writer` stopped."""
    shutil.copytree(trained(fleet, writer, STOP), place / "run")
    layout = LAYOUTS[reader]
    ask = [f"parent={place / 'run'}", f"at=[{STOP} steps]", "cooldown.length=4 steps"]
    ask += ["cluster.jobs=0", *layout.arguments]
    done = fleet.zygote(layout).run(1, ["branch", "apply", *ask])
    assert done.codes == [0], done
    branch = next(place.glob("run.*"))
    fleet.command(layout, f"resume={branch}")
    return branch


@pytest.mark.parametrize("writer,reader", [("FSDP 2", "ZeRO-3 2"), ("ZeRO-2 2", "FSDP 4")])
def test_a_branch_under_another_engine(
    fleet: Fleet, tmp_path: Path, writer: str, reader: str
) -> None:
    other = branched(fleet, tmp_path / "other", writer, reader)
    same = branched(fleet, tmp_path / "same", "one process", "one process")
    assert_goes_on(other, same, STOP + 4)
    assert [s["world_size"] for s in record(other)["sessions"]] == [LAYOUTS[reader].ranks]


@pytest.mark.parametrize("name", ["FSDP 4", "tensor 2", "ZeRO-3 2"])
def test_an_export_does_not_know_either(
    fleet: Fleet, tmp_path: Path, cli: Callable[..., int], name: str
) -> None:
    """The same files as from a checkpoint of the same values that one process wrote."""
    ranks, one = trained(fleet, name, STOP), tmp_path / "one"
    assert len(list(ranks.glob("checkpoints/*/*.distcp"))) == LAYOUTS[name].ranks
    shutil.copytree(ranks, one, ignore=shutil.ignore_patterns("step-*"))
    values = tensors(ranks, STOP)["model"]
    saver = Saver(CheckpointStore(Run.open(one).checkpoints), alone())
    saver.start({"model": values}, meta(STOP))
    saver.wait()
    files = {}
    for run in (ranks, one):
        folder = tmp_path / f"hf-{run.name}"
        assert cli("export", str(run), str(folder), f"step={STOP}", "max_shard_size=20KB") == 0
        files[run] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files[ranks] == files[one]
    assert len([name for name in files[one] if name.endswith(".safetensors")]) > 3
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.get_input_embeddings().weight, values["embedding.weight"])
