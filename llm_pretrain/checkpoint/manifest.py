"""The list of a checkpoint's files with sizes and checksums; its hash names the checkpoint."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_pretrain import atomic
from llm_pretrain.errors import DamagedCheckpointError

NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    size: int
    """Bytes."""
    sha256: str


def entry(path: Path) -> FileEntry:
    """Size and checksum of a file as it is on disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path.stat().st_size, digest)


def write(folder: Path, files: dict[str, FileEntry]) -> None:
    """Write the manifest of `folder`; the last file of a checkpoint to be written."""
    listing = {name: asdict(files[name]) for name in sorted(files)}
    content = {"files": listing, "identity": _digest(listing)}
    atomic.write_text(folder / NAME, json.dumps(content, indent=2) + "\n")


def identity(folder: Path) -> str:
    """Hash of the listing: equal for two checkpoints exactly when all their files are.

    Raises DamagedCheckpointError when the manifest is not whole.
    """
    return _digest(_listing(folder))


def verify(folder: Path, rank: int = 0, size: int = 1) -> None:
    """Compare every file with the manifest, or the share of `rank` among `size` that do so.

    Raises DamagedCheckpointError naming the first that differs.
    """
    listing = _listing(folder)
    # By size, so that the shares are about equal.
    names = sorted(listing, key=lambda name: (-listing[name]["size"], name))[rank::size]
    for name in sorted(names):
        reason = _difference(folder / name, FileEntry(**listing[name]))
        if reason:
            raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({name}{reason})")


def _listing(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / NAME).read_text())
        listing: dict[str, Any] = content["files"]
        stated = content["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({NAME}: {error})") from error
    if _digest(listing) != stated:
        raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({NAME}: wrong identity)")
    return listing


def _difference(path: Path, known: FileEntry) -> str | None:
    """What is wrong with a file, to be read after its name."""
    if not path.is_file():
        return " is missing"
    try:
        size = path.stat().st_size
        if size != known.size:
            return f" has {size} bytes, not {known.size}"
        return ": wrong checksum" if entry(path) != known else None
    except OSError as error:
        return f": {error.strerror}"


def _digest(listing: object) -> str:
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()
