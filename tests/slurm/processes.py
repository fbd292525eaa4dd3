"""Processes that outlive the objects which started them, told apart by pid and start time."""

import os
import select
import signal
from pathlib import Path

_SECONDS_TO_DIE = 30.0
_ENDED = "ended"


class Noted:
    """A process that is written down in a file, so that no other is ever taken for it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def note(self, pid: int) -> None:
        """Write down a process, which may have ended already."""
        self._file.write_text(f"{pid} {_start_time(pid)}\n")

    def pid(self) -> int | None:
        """The pid of the noted process; None when it has ended or none is noted."""
        try:
            pid, started = self._file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if started == _start_time(int(pid)) != _ENDED else None

    def kill(self) -> None:
        """Kill it and wait for its end; does nothing if it has ended.

        Raises:
            TimeoutError: it does not die.
        """
        pid = self.pid()
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The handle keeps to one process, but the pid may have got another in between.
            if self.pid() == pid:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                if not poll.poll(_SECONDS_TO_DIE * 1000):
                    raise TimeoutError(f"process {pid} does not die")
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def name(pid: int) -> str:
    """What a process calls itself; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _start_time(pid: int) -> str:
    """In clock ticks since the machine's start; _ENDED for none or a zombie."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else _ENDED


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, from the state on; empty for no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
