"""kill -9 at random moments: the same commands again always complete with the same result."""

import itertools
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import read
from tests.ranks.commands import Hit, Zygote
from tests.support import CONF, assert_same_run

KILLS = 20
BRANCHES = ("tiny.14-28.1-sqrt", "tiny.28-56.1-sqrt")


def commands(place: Path) -> list[list[str]]:
    """Prepare data, train a trunk with a plan, branch from it: one folder for everything."""
    plan = "plan=[{ends: [28 steps, 56 steps], cooldown: {length: 50%}}]"
    train = ["train", "experiment=tiny", f"--config-dir={CONF}", f"run.root={place}"]
    train += [f"data.cache={place / 'cache'}", plan, "checkpoint.every=7 steps", "run.name=tiny"]
    # Kept in the checkpoints, which are compared to the last bit.
    train += ["average.every=2 steps", "average.windows=[10 steps,20 steps]"]
    train += ["average.half_lives=[4 steps]"]
    return [train, ["branch", "apply", f"parent={place / 'tiny'}"]]


def assert_nothing_is_half_written(place: Path) -> None:
    """Every file that a reader would open is whole."""
    for run in place.glob("tiny*"):
        json.loads((run / "run.json").read_text())
        read(run / "config.yaml")
        store = CheckpointStore(run / "checkpoints")
        for step in store.steps():
            store.verify(step)


def assert_same_result(whole: Path, place: Path) -> None:
    """The trunk and both branches have the same metrics and states; nothing else is left."""
    for name in ("tiny", *BRANCHES):
        end = 40 if name == "tiny" else int(name.split(".")[1].split("-")[1])
        assert_same_run(whole / name, place / name, end)
    left = [p for p in place.rglob(".*") if p.name not in (".metadata", ".lock.guard")]
    assert not left, f"leftovers of killed processes: {left}"


@pytest.mark.slow
def test_twenty_kills(zygote: Zygote, tmp_path: Path) -> None:
    """At random moments, spread evenly over everything from the first document to the end."""
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert zygote.run(1, *commands(whole)).codes == [0]
    duration = time.monotonic() - began
    draw = random.Random(2024)
    kills, shots, reached = 0, itertools.count(), Counter[str]()
    for attempt in itertools.count():
        if kills == KILLS:
            break
        place = tmp_path / f"parts{attempt}"
        while True:
            # The times go through the whole duration in turn, also when a shot came too late.
            moment = duration * (next(shots) % 5 + draw.random()) / 5
            done = zygote.run(1, *commands(place), kill=(0, moment) if kills < KILLS else None)
            assert done.codes[0] in (0, -signal.SIGKILL), done
            assert_nothing_is_half_written(place)
            if done.codes == [0]:
                break
            kills += 1
            reached[phase(place)] += 1
        assert_same_result(whole, place)
    assert reached.keys() >= {"preparing", "trunk", "branch"}, reached


def phase(place: Path) -> str:
    """What the killed process was at, as its files tell."""
    if not list(place.glob("cache/tokens/*/prepared.json")):
        return "preparing"
    return "branch" if list(place.glob("tiny.*")) else "trunk"


CALLS = [
    ("llm_pretrain.runs:Run.create", 1),
    ("llm_pretrain.runs:Run.create", 2),
    ("llm_pretrain.runs:Run.update", 1),
    ("llm_pretrain.runs:Run.append_metrics", 9),
    ("llm_pretrain.runs:Run.pin", 1),
    ("llm_pretrain.checkpoint.store:CheckpointStore.begin", 2),
    ("llm_pretrain.checkpoint.saver:Saver._write_shards", 2),
    ("llm_pretrain.checkpoint.manifest:write", 2),
    ("llm_pretrain.atomic:publish_folder", 3),
    ("llm_pretrain.atomic:remove_folder", 1),
    ("llm_pretrain.lock:create_exclusive", 1),
]


@pytest.mark.slow
def test_killed_around_every_write(zygote: Zygote, tmp_path: Path) -> None:
    """Just before and just after each operation that changes a run directory."""
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    shared = [f"data.cache={cache}", "checkpoint.keep_last=1", "checkpoint.keep_every=0 steps"]

    def both(place: Path) -> list[list[str]]:
        train, branch = commands(place)
        return [[*train, *shared], branch]

    assert zygote.run(1, *both(whole)).codes == [0]
    for i, (function, call) in enumerate(CALLS):
        for when in ("before", "after"):
            place = tmp_path / f"{i}-{when}"
            done = zygote.run(1, *both(place), hit=Hit(function, call, when))
            assert done.codes == [-signal.SIGKILL], (function, when)
            assert_nothing_is_half_written(place)
            assert zygote.run(1, *both(place)).codes == [0], (function, when)
            assert_same_result(whole, place)
