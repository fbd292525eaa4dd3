"""kill -9 of one rank: the others end and say so, and the same command completes the run."""

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.errors import EXIT_FAILED
from llm_pretrain.runs import Run
from tests.ranks.commands import Done, Hit, Zygote
from tests.support import ROOT, assert_same_run, record, tiny
from tests.train.test_signals import wait_for_steps

STEPS = 20
LONG = 150
KILLS = 5
FSDP_STEP = "llm_pretrain.engine.fsdp:FsdpEngine.step"
ZERO_STEP = "llm_pretrain.engine.deepspeed:DeepSpeedEngine.step"
SHARDS = "llm_pretrain.checkpoint.saver:Saver._write_shards"

Train = Callable[[Zygote, int, tuple[str, ...]], Path]


def ask(place: Path, cache: Path, *overrides: str) -> list[str]:
    """A run of twenty steps with a checkpoint after every fifth."""
    every = [f"checkpoint.{name}=5 steps" for name in ("every", "keep_every")]
    batch = ("data.global_batch=12", "data.micro_batch=12", f"schedule.total={STEPS} steps")
    return tiny(place, f"data.cache={cache}", *every, *batch, *overrides)


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The run that nobody hits, trained once for each engine and number of ranks."""

    @functools.cache
    def train(zygote: Zygote, size: int, overrides: tuple[str, ...]) -> Path:
        place = tmp_path_factory.mktemp("whole") / "run"
        zygote.train(size, *ask(place, cache, *overrides))
        return place

    return train


@dataclass(frozen=True)
class Trial:
    """A run that is hit, and the same one left in peace."""

    zygote: Zygote
    size: int
    arguments: list[str]
    run: Path
    whole: Path

    def start(self, hit: Hit | None = None, kill: tuple[int, float] | None = None) -> Done:
        """Start the run, or go on with it: the same command each time."""
        return self.zygote.run(self.size, ["train", *self.arguments], hit=hit, kill=kill)

    def hit(self, death: Hit, saved: Sequence[int]) -> None:
        """A rank dies at a definite point, when the last checkpoint is one of `saved`."""
        done = self.start(hit=death)
        assert done.codes[death.rank] == -signal.SIGKILL, done
        # The zygote's limit is minutes away: they ended by themselves.
        for rank in set(range(self.size)) - {death.rank}:
            assert done.codes[rank] == EXIT_FAILED, done
            assert f"error: rank {rank}: another rank is lost" in done.output(rank)
            assert "Traceback" not in done.output(rank)
            self.dump(rank, done.output(rank))
        assert self.last_checkpoint() in saved
        assert Run(self.run).status == ("lost" if death.rank == 0 else "failed")

    def dump(self, rank: int, said: str = "") -> dict[str, Any]:
        """What a rank wrote down when another was lost in the first session, as it said."""
        file = self.run / "flight-recorder" / "session-1" / f"rank-{rank:04d}.json"
        dump: dict[str, Any] = json.loads(file.read_text())
        last = dump["last_collective"]
        assert last in dump["collectives"]
        assert rank in self.group(dump)
        name = last["profiling_name"].removeprefix("gloo:")
        assert not said or f"its last collective was {name} {last['collective_seq_id']} of" in said
        assert str(file) in said or not said
        return dump

    @staticmethod
    def group(dump: dict[str, Any]) -> list[int]:
        """The ranks of the last collective in a dump."""
        ranks: list[int] = dump["groups"][dump["last_collective"]["process_group"][0]]["ranks"]
        return ranks

    def last_checkpoint(self) -> int:
        """Its step, or 0; every checkpoint that a reader would see is whole."""
        store = CheckpointStore(self.run / "checkpoints")
        return max((store.verify(step).step for step in store.steps()), default=0)

    def complete(self) -> None:
        """Once more, and the run is what it would have been."""
        done = self.start()
        assert not any(done.codes), done
        assert_same_run(self.run, self.whole, STEPS)
        assert not list(self.whole.glob("flight-recorder"))
        # What the hit left is there until another session loses a rank.
        assert len(list(self.run.glob("flight-recorder/session-*"))) <= 1


@pytest.fixture
def trial(whole: Train, cache: Path, tmp_path: Path) -> Callable[..., Trial]:
    """A trial on so many ranks: trial(zygote, size, *overrides)."""

    def make(zygote: Zygote, size: int, *overrides: str) -> Trial:
        place = tmp_path / "run"
        peaceful = whole(zygote, size, overrides)
        return Trial(zygote, size, ask(place, cache, *overrides), place, peaceful)

    return make


@pytest.mark.parametrize(
    "size,death,saved",
    [
        # During a step, the save of the tenth may still be going on.
        (2, Hit(FSDP_STEP, 13, "before", rank=1), [5, 10]),
        (2, Hit(FSDP_STEP, 13, "after", rank=0), [5, 10]),
        (4, Hit(FSDP_STEP, 1, "before", rank=2), [0]),
        (2, Hit(SHARDS, 2, "before", rank=1), [5]),
        (3, Hit(SHARDS, 4, "after", rank=2), [15]),
        (2, Hit(SHARDS, 4, "after", rank=0), [15]),
    ],
)
def test_fsdp(
    zygote: Zygote, trial: Callable[..., Trial], size: int, death: Hit, saved: list[int]
) -> None:
    tried = trial(zygote, size)
    tried.hit(death, saved)
    tried.complete()
    assert record(tried.run)["sessions"][-1]["from_step"] in saved


@pytest.mark.parametrize(
    "layout,death,saved,waits",
    [
        # Of four ranks, each exchanges with two others, in groups of their own. The one that the
        # state is shared with waits for its part of the gradient's norm.
        (
            ("engine.replicate=2",),
            Hit(FSDP_STEP, 8, "before", rank=3, signal=signal.SIGSTOP),
            [5],
            (2, [2, 3], "engine/fsdp.py", "step"),
        ),
        # A save waits for it, and so does the next step.
        ((), Hit(SHARDS, 2, "before", rank=1, signal=signal.SIGSTOP), [5], None),
        # Nothing but the last save waits for it.
        (
            (),
            Hit(SHARDS, 4, "before", rank=1, signal=signal.SIGSTOP),
            [15],
            (0, [0, 1], "checkpoint/saver.py", "_write_all"),
        ),
    ],
)
def test_a_rank_that_hangs(
    zygote: Zygote,
    trial: Callable[..., Trial],
    *,
    layout: tuple[str, ...],
    death: Hit,
    saved: list[int],
    waits: tuple[int, list[int], str, str] | None,
) -> None:
    """`waits`: a rank, those that it waits with, and the function in which it does."""
    # Enough for the save that must be complete before, on a machine that is busy.
    patience = ("engine.timeout=12", "checkpoint.timeout=12")
    tried = trial(zygote, 4 if layout else 2, *patience, *layout)
    tried.hit(death, saved)
    if waits is not None:
        rank, group, file, function = waits
        dump = tried.dump(rank)
        assert tried.group(dump) == group
        ours = [line for line in dump["waited_at"] if file in line]
        assert any(line.endswith(f" {function}") for line in ours), dump["waited_at"]
    tried.complete()


@pytest.mark.parametrize(
    "death,saved",
    [
        (Hit(ZERO_STEP, 13, "after", rank=1), [5, 10]),
        (Hit(SHARDS, 3, "before", rank=0), [10]),
    ],
)
def test_zero(
    deepspeed_zygote: Zygote, trial: Callable[..., Trial], death: Hit, saved: list[int]
) -> None:
    tried = trial(deepspeed_zygote, 2, "engine=deepspeed", "engine.zero_stage=3")
    tried.hit(death, saved)
    tried.complete()


@pytest.mark.slow
def test_at_random_moments(zygote: Zygote, whole: Train, cache: Path, tmp_path: Path) -> None:
    """Any rank at any time, the rendezvous included, where only engine.timeout ends the others."""
    overrides = ("engine.timeout=30",)
    peaceful = whole(zygote, 3, overrides)
    timed = zygote.train(3, *ask(tmp_path / "timed", cache, *overrides))
    draw, kills = random.Random(41), 0
    for attempt in itertools.count():
        if kills == KILLS:
            break
        place = tmp_path / str(attempt)
        tried = Trial(zygote, 3, ask(place, cache, *overrides), place, peaceful)
        while kills < KILLS:
            done = tried.start(kill=(draw.randrange(3), draw.random() * timed.seconds[0]))
            # Nobody hung until the zygote's limit: one was killed, the others ended by themselves.
            assert done.codes.count(-signal.SIGKILL) <= 1, done
            tried.last_checkpoint()
            if not any(done.codes):
                break
            kills += 1
        tried.complete()


@pytest.mark.slow
def test_under_torchrun(zygote: Zygote, tiny_corpus: Path, cache: Path, tmp_path: Path) -> None:
    """Its agent ends the other ranks, and the run goes on without an agent."""
    long = (f"schedule.total={LONG} steps", "checkpoint.every=25 steps", "engine.shard=2")
    arguments = ask(tmp_path / "run", cache, *long)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, "--nproc-per-node=2", "-m", "llm_pretrain.train", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(tmp_path / "run", 30)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    while not store.steps() and process.poll() is None:
        time.sleep(0.01)
    os.kill(record(tmp_path / "run")["sessions"][0]["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert Run(tmp_path / "run").status == "lost"
    zygote.train(2, *arguments)
    zygote.train(2, *ask(tmp_path / "whole", cache, *long))
    assert_same_run(tmp_path / "run", tmp_path / "whole", LONG)
    assert record(tmp_path / "run")["sessions"][1]["from_step"] in range(25, LONG, 25)
