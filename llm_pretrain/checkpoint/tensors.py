"""The tensors of a checkpoint, read by torch.distributed.checkpoint."""

import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

# A single process needs no group; DCP warns of it at every save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def keys(folder: Path) -> set[str]:
    """Names of the tensors in a checkpoint."""
    return set(FileSystemReader(folder).read_metadata().state_dict_metadata)


def fill(folder: Path, state: dict[str, Any], *, distributed: bool) -> None:
    """Fill the tensors of `state` in place; each rank reads only its own shards."""
    load(state, storage_reader=FileSystemReader(folder), no_dist=not distributed)
