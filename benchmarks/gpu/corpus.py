"""Real text that every machine has: the Python sources that are installed, as parquet files."""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 4096
_LEFT_OUT = {"__pycache__"}


def roots() -> list[Path]:
    """The standard library and what is installed beside it, none inside another."""
    found = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    return sorted(root for root in found if not any(o in root.parents for o in found))


def sources(folders: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Name and text of each Python file, a text that comes again left out; always in one order."""
    seen: set[bytes] = set()
    for folder in folders:
        for name, path in _files(folder):
            content = path.read_bytes()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if not content or digest in seen:
                continue
            seen.add(digest)
            try:
                yield name, content.decode()
            except UnicodeDecodeError:
                continue


def write(documents: Iterable[tuple[str, str]], folder: Path, limit: int) -> int:
    """Write about `limit` bytes of text at most into `folder`/*.parquet; how many there were.

    Which documents are left out follows from hashes of their names, so all packages take part.
    """
    ordered = sorted(documents, key=lambda d: hashlib.blake2b(d[0].encode()).digest())
    folder.mkdir(parents=True)
    size, kept = 0, list[dict[str, str]]()
    for name, text in ordered:
        if size + len(text) > limit:
            break
        size += len(text)
        kept.append({"name": name, "text": text})
    for first in range(0, len(kept), _ROWS):
        table = pa.Table.from_pylist(kept[first : first + _ROWS])
        pq.write_table(table, folder / f"{first // _ROWS:03}.parquet")  # type: ignore[no-untyped-call]
    return size


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s not in _LEFT_OUT)
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(".py") and path.is_file():
                yield path.relative_to(root).as_posix(), path
