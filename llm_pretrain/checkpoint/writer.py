"""Files of a checkpoint that are checksummed while they are written."""

import hashlib
import io
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from llm_pretrain.checkpoint.manifest import FileEntry

_BUFFER_BYTES = 2**20


class HashingWriter(FileSystemWriter):
    """Writes into a folder that exists, and knows size and checksum of each file it wrote."""

    def __init__(self, folder: Path) -> None:
        # The pieces are on the host: nothing is to be copied ahead. Our files sync themselves.
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0)
        self.entries: dict[str, FileEntry] = {}
        """Of the files that are complete and on disk."""
        self.failure: OSError | None = None
        """What the operating system said; torch may report something else, and to other ranks."""
        self.fs = _HashingFiles(self.entries)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """See StorageWriter."""
        with self._noting():
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """See StorageWriter."""
        with self._noting():
            super().finish(metadata, results)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__cause__ or reason.__context__
            self.failure = reason
            raise


class _HashingFiles(FileSystem):
    """The file system as torch uses it, with a list of what was written."""

    def __init__(self, entries: dict[str, FileEntry]) -> None:
        self._entries = entries

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        """See FileSystemBase."""
        if mode != "wb":
            raise ValueError(f"{path}: a checkpoint's files are only written here, not {mode}")
        with _HashingFile(Path(path)) as file:
            yield file
        self._entries[Path(path).name] = file.entry

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """See FileSystemBase."""
        super().rename(path, new_path)
        self._entries[Path(new_path).name] = self._entries.pop(Path(path).name)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Nothing: a rank that does not see the folder has another disk, and must not hide it."""


class _HashingFile(io.BufferedWriter):
    """A new file; on disk, and its entry known, when it is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(cast(Any, io.FileIO(path, "w")), _BUFFER_BYTES)
        self._digest = hashlib.sha256()
        self._size = 0

    @property
    def entry(self) -> FileEntry:
        """Size and checksum of what was written."""
        return FileEntry(self._size, self._digest.hexdigest())

    def write(self, data: Any) -> int:
        """See io.BufferedWriter; `data` is any buffer of bytes."""
        self._digest.update(data)
        self._size += len(data)
        return super().write(data)

    def close(self) -> None:
        """Write what is left and wait until the disk has it. Raises OSError."""
        if self.closed:
            return
        try:
            self.flush()
            os.fsync(self.fileno())
        finally:
            super().close()
