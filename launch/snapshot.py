"""The code of a job as it was when the job was submitted."""

import hashlib
import shutil
from pathlib import Path

import launch
from llm_pretrain import atomic, provenance
from llm_pretrain.config.groups import conf_dir
from llm_pretrain.errors import UserError

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def snapshot(root: Path) -> Path:
    """A folder below `root` with this package as it is now, the same one for the same files.

    Jobs import from there, so that nothing edited after a submission reaches them. Raises
    UserError when it cannot be written.
    """
    place = place_of(root)
    if place.is_dir():
        return place
    temporary = atomic.temporary_beside(place)
    try:
        for name, source in _sources().items():
            shutil.copytree(source, temporary / name, ignore=_IGNORED)
        atomic.write_text(temporary / "git.diff", provenance.diff())
        if not atomic.publish_folder(temporary, place):
            shutil.rmtree(temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{root}: cannot be written ({error.strerror})") from error
    return place


def place_of(root: Path) -> Path:
    """Where `snapshot` puts this package as it is now."""
    return root / _digest(_sources())


def _sources() -> dict[str, Path]:
    package = Path(provenance.__file__).parent
    return {"llm_pretrain": package, "launch": Path(launch.__file__).parent, "conf": conf_dir()}


def _digest(sources: dict[str, Path]) -> str:
    total = hashlib.sha256()
    for name, source in sorted(sources.items()):
        for file in sorted(source.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(f"{name}/{file.relative_to(source)}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]
