"""A lock file that names its holder; a dead holder's lock is taken over."""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_pretrain.atomic import create_exclusive, place, start_time
from llm_pretrain.errors import EXIT_FAILED, RunInUseError

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
"""A holder on another host is dead when its lock was not touched for this long."""


@dataclass(frozen=True)
class Holder:
    """A process, told apart from a later one with the same pid by its start time."""

    host: str
    place: str
    """Host and process namespace: equal places count processes together."""
    pid: int
    started: str

    @classmethod
    def current(cls) -> "Holder":
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), place(), pid, start_time(pid) or "unknown")

    def alive(self, lock: Path) -> bool:
        """Whether the holder still runs; by heartbeat when it is on another host."""
        if self.place == place():
            return start_time(self.pid) == self.started
        try:
            return time.time() - lock.stat().st_mtime < STALE_SECONDS
        except FileNotFoundError:
            return False


def holder(lock: Path) -> Holder | None:
    """The live holder of `lock`, or None when it is free or its holder is dead."""
    found = _read(lock)
    return found if found and found.alive(lock) else None


@contextmanager
def hold(lock: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold `lock` for the duration of the block.

    Raises RunInUseError naming the live holder, once it has lived for `patience` more seconds: on a
    node that failed, a holder seems to live until its heartbeat is missed.
    """
    me = Holder.current()
    until = time.monotonic() + patience
    while True:
        try:
            _acquire(lock, me)
            break
        except RunInUseError:
            if time.monotonic() >= until:
                raise
            time.sleep(min(1.0, patience))
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock, me, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _read(lock) == me:
            lock.unlink(missing_ok=True)


def _acquire(lock: Path, me: Holder) -> None:
    # The guard makes "is it dead? then replace it" one step among processes that share the disk.
    with lock.with_name(f".{lock.name}.guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        found = _read(lock)
        if found and found.alive(lock):
            raise RunInUseError(
                f"{lock.parent}: in use by process {found.pid} on {found.host}; "
                "wait for it or stop it"
            )
        lock.unlink(missing_ok=True)
        if not create_exclusive(lock, json.dumps(asdict(me)) + "\n"):
            raise RunInUseError(f"{lock.parent}: in use; another process took it just now")


def _heartbeat(lock: Path, me: Holder, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        # One failure on a network file system must not end the heartbeat.
        with suppress(OSError):
            os.utime(lock)
            if _read(lock) not in (me, None):
                # This process was cut off, so that others took it for dead. It must not write to
                # the run any more, not even to close it.
                print(f"{lock.parent}: taken over by another process; ending", file=sys.stderr)
                os._exit(EXIT_FAILED)


def _read(lock: Path) -> Holder | None:
    try:
        return Holder(**json.loads(lock.read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
