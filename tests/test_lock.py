"""The lock of a run directory: exclusive, honest about its holder, free after a crash."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_pretrain import lock
from llm_pretrain.errors import RunInUseError

HOLD = """
import sys, time
from pathlib import Path
from llm_pretrain.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> "subprocess.Popen[str]":
    """A live process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_message_names_host_and_pid(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    with pytest.raises(RunInUseError) as error, lock.hold(tmp_path / "lock"):
        pass
    assert str(other.pid) in str(error.value)
    assert socket.gethostname() in str(error.value)
    other.kill()
    other.wait()


def test_a_dead_holders_lock_is_taken_over(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "lock").exists()
    assert lock.holder(tmp_path / "lock") is None
    with lock.hold(tmp_path / "lock"):
        assert lock.holder(tmp_path / "lock") == lock.Holder.current()
    assert not (tmp_path / "lock").exists()


def test_a_later_process_with_the_same_pid_is_not_the_holder(tmp_path: Path) -> None:
    me = lock.Holder.current()
    impostor = {"host": me.host, "place": me.place, "pid": os.getpid(), "started": "1"}
    (tmp_path / "lock").write_text(json.dumps(impostor))
    assert lock.holder(tmp_path / "lock") is None


def test_a_holder_elsewhere_lives_while_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "far", "place": "far-1", "pid": 1, "started": "1"}))
    assert lock.holder(path) is not None
    long_ago = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    assert lock.holder(path) is None
    with lock.hold(path):
        pass


def _count(path: Path, results: Path) -> None:
    for _ in range(30):
        try:
            with lock.hold(path):
                inside = results / "inside"
                inside.touch(exist_ok=False)  # raises when two are inside at once
                time.sleep(0.001)
                inside.unlink()
        except RunInUseError:
            time.sleep(0.001)
    (results / f"done-{os.getpid()}").touch()


def test_never_two_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "far", "place": "far", "pid": 1, "started": "1"}))
    os.utime(path, (0, 0))
    workers = [context.Process(target=_count, args=(path, tmp_path)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    assert len(list(tmp_path.glob("done-*"))) == 4
