"""Files that appear whole or not at all, and the leftovers of writers that were killed."""

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\..+@(?P<place>[^@]+)@(?P<pid>\d+)@[0-9a-f]+\.tmp")


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` when the block ends without an error.

    The bytes are on disk before the name exists, so a reader never sees part of them, and of two
    writers the later one wins as a whole. Raises OSError.
    """
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.name}@{_place()}@{os.getpid()}@{token}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files in `folder` whose writer ran on this machine and is dead."""
    for file in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(file.name)
        if match and match["place"] == _place() and not _alive(int(match["pid"])):
            file.unlink(missing_ok=True)


def _place() -> str:
    # Containers may share a host name but count processes apart; the namespace tells them apart.
    namespace = Path("/proc/self/ns/pid")
    suffix = f"-{namespace.stat().st_ino}" if namespace.exists() else ""
    return socket.gethostname().replace("@", "-") + suffix


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie takes signals too; in a container it may wait for its parent's notice forever.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's, or a system without /proc
    return state[:1] not in ("Z", "X")
