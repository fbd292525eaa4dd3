"""The watch over the main thread: it bites when nothing moves, and at no other time."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from llm_pretrain.train.watchdog import Watchdog
from tests.ranks.commands import Hit, zygote
from tests.support import record, tiny

SECONDS = 0.4


def bitten(*, signs: bool, paused: bool = False) -> bool:
    """Whether it bites while this thread sleeps three times as long as it may."""
    bites = threading.Event()
    with Watchdog(SECONDS, bites.set) as watchdog:
        if signs:
            watchdog.alive()
        if paused:
            with watchdog.paused():
                time.sleep(3 * SECONDS)
        else:
            time.sleep(3 * SECONDS)
        return bites.is_set()


def test_it_bites_after_silence() -> None:
    assert bitten(signs=True)


def test_it_waits_for_the_first_sign() -> None:
    assert not bitten(signs=False)


def test_it_sleeps_through_a_pause() -> None:
    assert not bitten(signs=True, paused=True)


def test_it_watches_again_after_a_pause() -> None:
    bites = threading.Event()
    with Watchdog(SECONDS, bites.set) as watchdog:
        watchdog.alive()
        with watchdog.paused():
            pass
        assert bites.wait(10)


def test_without_a_limit_there_is_no_thread() -> None:
    before = threading.active_count()
    with Watchdog(None, lambda: None) as watchdog:
        watchdog.alive()
        assert threading.active_count() == before


STUCK = f"""
import os, time
from llm_pretrain.train.watchdog import Watchdog
with Watchdog({SECONDS}, lambda: os._exit(7)) as watchdog:
    watchdog.alive()
    time.sleep(600)
"""


def test_it_can_end_a_process_whose_main_thread_is_stuck() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], timeout=60, check=False)
    assert done.returncode == 7


def test_a_rank_that_hangs_is_named_by_ranks_in_which_nothing_raises_an_error(
    corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """As where collectives run on devices: here gloo has 30 seconds more, and nobody needs them."""
    run = tmp_path / "run"
    asked = tiny(run, f"data.cache={cache}", "engine.timeout=5")
    stopped = Hit("llm_pretrain.engine.fsdp:FsdpEngine.step", 8, rank=1, signal=signal.SIGSTOP)
    with zygote(corpus, tmp_path, "tests.ranks.as_on_devices") as ranks:
        done = ranks.run(2, ["train", *asked], hit=stopped)
    assert done.codes == [1, -signal.SIGKILL], done
    said = done.output(0)
    assert "error: no step ended within 5 s. No answer from rank 1 on " in said
    assert "It waited at engine/fsdp.py" in said
    dump = json.loads((run / "flight-recorder" / "session-1" / "rank-0000.json").read_text())
    assert any("engine/fsdp.py" in line for line in dump["waited_at"])
    assert record(run)["state"] == "failed"
    assert (run / "failed-nodes").read_text().split() == record(run)["sessions"][0]["nodes"]
