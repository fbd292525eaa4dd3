"""The tensors of a checkpoint, read by torch.distributed.checkpoint."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from llm_pretrain.errors import UserError

# A single process needs no group; DCP warns of it at every save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def describe(folder: Path) -> dict[str, torch.Tensor]:
    """Name -> shape and type of each tensor in a checkpoint, as a tensor on the meta device."""
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def keys(folder: Path) -> set[str]:
    """Names of the tensors in a checkpoint."""
    return set(describe(folder))


class Reader(FileSystemReader):
    """Reads a checkpoint, of which it parses the index once for any number of calls of `fill`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See StorageReader."""
        if self._index is None:
            self._index = super().read_metadata(*args, **kwargs)
        return self._index


def fill(folder: Path | Reader, state: dict[str, Any], *, group: Any = None) -> None:
    """Fill the tensors of `state` in place from a checkpoint, which may hold more.

    Each rank reads only pieces that it has a part of, one after the other. `group`: the ranks that
    load together; None: this process alone. Raises UserError when a file cannot be read.
    """
    reader = folder if isinstance(folder, Reader) else Reader(folder)
    try:
        load(state, storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        for rank, (reason, _) in sorted(error.failures.items()):
            if isinstance(reason, OSError):
                raise UserError(
                    f"{reader.path}: cannot be read on rank {rank} ({reason.filename}: "
                    f"{reason.strerror})"
                ) from error
        # Anything else is a defect. Its own type is no Exception.
        raise RuntimeError(str(error)) from error
