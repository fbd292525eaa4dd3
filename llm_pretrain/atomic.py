"""Files and folders that are whole or absent, and the leftovers of writers that were killed."""

import contextlib
import os
import re
import secrets
import shutil
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
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; raises OSError and leaves the old file on failure."""
    with appearing(path) as file:
        file.write(text.encode())


def create_exclusive(path: Path, text: str) -> bool:
    """Create `path` holding `text`; False when it already exists. A reader never sees half."""
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def publish_folder(temporary: Path, final: Path) -> bool:
    """Rename a finished folder into place; False when `final` exists and is not empty."""
    sync_folder(temporary)
    try:
        temporary.rename(final)
    except OSError:
        if final.is_dir() and any(final.iterdir()):
            return False
        raise
    sync_folder(final.parent)
    return True


def remove_folder(path: Path) -> None:
    """Delete a folder so that nobody sees it half gone: rename first, then delete."""
    doomed = temporary_beside(path)
    path.rename(doomed)
    shutil.rmtree(doomed)


def temporary_beside(path: Path) -> Path:
    """A name for what will become `path`, which tells whether its writer still lives."""
    return path.with_name(f".{path.name}@{place()}@{os.getpid()}@{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files and folders whose writer ran on this machine and is dead."""
    for left in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(left.name)
        if match and match["place"] == place() and start_time(int(match["pid"])) is None:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place() -> str:
    """Where process ids count: the host, and the namespace that a container may have."""
    namespace = Path("/proc/self/ns/pid")
    suffix = f"-{namespace.stat().st_ino}" if namespace.exists() else ""
    return socket.gethostname().replace("@", "-") + suffix


def start_time(pid: int) -> str | None:
    """Clock ticks after boot at which a process began; None when there is no such process.

    It tells a process from a later one with the same pid. Linux only.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
