"""The documents of a source, one after the other, each with the name that decides its split."""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import platform
import sysconfig
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from llm_pretrain.config.data import SourceConfig
from llm_pretrain.errors import UserError, did_you_mean

_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}
_PARQUET_ROWS = 1024


class Document(NamedTuple):
    """A text and what it is called within its source."""

    name: str
    text: str


def documents(name: str, source: SourceConfig) -> Iterator[Document]:
    """The documents of source `name` (kinds stdlib and text) in an order that never changes.

    Documents without text are left out, and so are library files that are not UTF-8.
    Raises UserError, naming the field at fault, while iterating.
    """
    found = _stdlib_documents() if source.kind == "stdlib" else _text_documents(name, source)
    return itertools.islice(found, source.limit)


def held_out(document_name: str, fraction: float) -> bool:
    """Whether a document belongs to validation: a share `fraction` of all names does."""
    digest = hashlib.blake2b(document_name.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def definition(name: str, source: SourceConfig) -> dict[str, Any]:
    """Everything that decides the documents of a source, as plain values: never its weight.

    Local files count with their names and sizes, the standard library with the Python it is of.
    Raises UserError when the files are missing.
    """
    chosen: dict[str, Any] = {"kind": source.kind, "limit": source.limit}
    if source.kind == "stdlib":
        files = _stdlib_files()
        sizes = [path.stat().st_size for _, path in files]
        return chosen | {
            "python": platform.python_version(),
            "files": len(sizes),
            "bytes": sum(sizes),
        }
    for field in ("path", "format", "config", "split", "field", "id_field"):
        chosen[field] = getattr(source, field)
    if source.format is not None:
        listing = [(path.name, path.stat().st_size) for path in _local_files(name, source)]
        chosen["files"] = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return chosen


def _stdlib_documents() -> Iterator[Document]:
    for relative, path in _stdlib_files():
        # A few files of the library's own tests are in other encodings on purpose.
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_bytes().decode()
            if text:
                yield Document(relative, text)


def _stdlib_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in _NOT_STDLIB]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        found += [(path.relative_to(root).as_posix(), path) for path in paths]
    return sorted(found)


def _text_documents(name: str, source: SourceConfig) -> Iterator[Document]:
    rows = _parquet_rows(name, source) if source.format == "parquet" else _rows(name, source)
    with contextlib.closing(rows):
        for position, row in enumerate(rows):
            _check_columns(name, source, row)
            text = row[source.field]
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"data.sources.{name}.field: '{source.field}' holds {type(text).__name__} "
                    f"in row {position}, not text"
                )
            label = position if source.id_field is None else row[source.id_field]
            if label is None:
                raise UserError(
                    f"data.sources.{name}.id_field: '{source.id_field}' is empty in row {position}"
                )
            if text:
                yield Document(str(label), text)


def _parquet_rows(name: str, source: SourceConfig) -> Generator[dict[str, Any]]:
    """Rows of local parquet files, only the columns in use.

    Read here and not as a stream of `datasets`: a stream left before its end, as `limit` leaves
    it, keeps threads of pyarrow that can abort the process when it exits.
    """
    columns = [c for c in (source.field, source.id_field) if c is not None]
    for path in _local_files(name, source):
        try:
            with pq.ParquetFile(path) as file:  # type: ignore[no-untyped-call]
                _check_columns(name, source, file.schema_arrow.names)
                for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
                    yield from batch.to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"data.sources.{name}.path: {path} cannot be read: {error}") from error


def _rows(name: str, source: SourceConfig) -> Generator[dict[str, Any]]:
    """Rows of local json or text files, or of a dataset on the hub, as a stream of `datasets`."""
    # Imported late: it takes a second, and neither the library nor a full cache needs it.
    from datasets import load_dataset  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    path = source.path or ""
    target: dict[str, Any] = {"path": path, "name": source.config}
    if source.format is not None:
        # `datasets` raises StopIteration for a file without a row.
        files = [str(f) for f in _local_files(name, source) if f.stat().st_size]
        if not files:
            return
        target = {"path": source.format, "data_files": {source.split: files}}
    elif Path(path).exists():
        raise UserError(
            f"data.sources.{name}.format: missing; {path} is on this machine, so say what it is: "
            "json, parquet or text"
        )
    try:
        yield from load_dataset(**target, split=source.split, streaming=True)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"data.sources.{name}.path: {path} cannot be read: {error}") from error


def _local_files(name: str, source: SourceConfig) -> list[Path]:
    # glob, because Path.glob refuses absolute patterns.
    found = glob.glob(source.path or "", recursive=True)  # noqa: PTH207
    files = sorted((Path(f) for f in found if Path(f).is_file()), key=Path.as_posix)
    if not files:
        raise UserError(
            f"data.sources.{name}.path: no file matches '{source.path}' in {Path.cwd()}; "
            "write a file or a glob such as 'texts/*.jsonl'"
        )
    return files


def _check_columns(name: str, source: SourceConfig, columns: Iterable[str]) -> None:
    for option, column in (("field", source.field), ("id_field", source.id_field)):
        if column is not None and column not in columns:
            raise UserError(
                f"data.sources.{name}.{option}: no column '{column}' in {source.path}; "
                f"{did_you_mean(column, columns)}"
            )
