"""Several ranks on gloo: the same losses as one process, one run directory, any world size next."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks.commands import Hit, Zygote
from tests.support import ROOT, assert_same_run, metrics, record, tiny

Train = Callable[..., int]
VALUES = ("loss", "grad_norm", "val_loss", "val_stderr")


def torchrun(ranks: int, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """Start `python -m llm_pretrain.train` on several ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", "-m", "llm_pretrain.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_close_runs(a: Path, b: Path) -> None:
    """Equal within rounding: 1e-6 after the first step, growing as training amplifies it."""
    rows, others = metrics(a), metrics(b)
    assert [(r["step"], r["tokens"]) for r in rows] == [(r["step"], r["tokens"]) for r in others]
    for row, other in zip(rows, others, strict=True):
        for key in VALUES:
            rel = (1e-4 if key == "grad_norm" else 5e-6) * row["step"]
            assert row.get(key, 0) == pytest.approx(other.get(key, 0), rel=rel), (row, other)


@pytest.mark.slow
def test_two_ranks_equal_one(train: Train, tmp_path: Path, cache: Path) -> None:
    assert train(tmp_path / "one") == 0
    done = torchrun(2, tiny(tmp_path / "two", f"data.cache={cache}"))
    assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert record(tmp_path / "two")["sessions"][0]["world_size"] == 2


def test_one_goes_on_where_two_stopped_and_branches(
    train: Train, cli: Train, zygote: Zygote, tmp_path: Path, cache: Path
) -> None:
    assert train(tmp_path / "one") == 0
    place = tmp_path / "mixed"
    zygote.train(2, *tiny(place, f"data.cache={cache}", "schedule.total=20 steps"))
    assert cli("train", f"resume={place}", "schedule.total=40 steps") == 0
    assert_close_runs(tmp_path / "one", place)
    assert cli("branch", "apply", f"parent={place}", "at=[20 steps]") == 0


def test_a_signal_to_one_rank_stops_all(zygote: Zygote, tmp_path: Path, cache: Path) -> None:
    run, whole = (tiny(tmp_path / name, f"data.cache={cache}") for name in ("run", "whole"))
    tenth = Hit(
        "llm_pretrain.engine.fsdp:FsdpEngine.step", 10, "after", rank=1, signal=signal.SIGTERM
    )
    done = zygote.run(2, ["train", *run], hit=tenth)
    assert done.codes == [75, 75], done
    state = record(tmp_path / "run")
    # The others hear of it while they compute the next one.
    assert (state["state"], state["step"]) == ("interrupted", 11)
    zygote.train(2, *run)
    zygote.train(2, *whole)
    assert_same_run(tmp_path / "run", tmp_path / "whole", 40)


@pytest.mark.slow
def test_bad_input_ends_every_rank(tmp_path: Path, tiny_corpus: Path, cache: Path) -> None:
    done = torchrun(
        2,
        tiny(tmp_path / "run", f"data.cache={cache}", "data.global_batch=9", "data.micro_batch=3"),
    )
    assert done.returncode != 0
    assert "data.global_batch: 9 does not divide over 2 ranks" in done.stderr
    assert not (tmp_path / "run").exists()
