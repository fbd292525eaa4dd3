"""Files and folders that are whole or absent, also after a crash."""

import os
import shutil
import uuid
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; raises OSError and leaves the old file on failure."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_exclusive(path: Path, text: str) -> bool:
    """Create `path` holding `text`; False when it already exists. A reader never sees half."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
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
    doomed = path.with_name(f".trash-{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
