"""The list of a checkpoint's files with sizes and checksums; its hash names the checkpoint."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

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
    try:
        content = json.loads((folder / NAME).read_text())
        listing, stated = content["files"], content["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({NAME}: {error})") from error
    if _digest(listing) != stated:
        raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({NAME}: wrong identity)")
    return str(stated)


def verify(folder: Path) -> None:
    """Compare every file with the manifest. Raises DamagedCheckpointError naming the first."""
    identity(folder)
    listing = json.loads((folder / NAME).read_text())["files"]
    expected = {name: FileEntry(**value) for name, value in listing.items()}
    for name, known in expected.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({name} is missing)")
        size = path.stat().st_size
        if size != known.size:
            raise DamagedCheckpointError(
                f"{folder}: damaged checkpoint ({name} has {size} bytes, not {known.size})"
            )
        if entry(path) != known:
            raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({name}: wrong checksum)")


def _digest(listing: object) -> str:
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()
