"""Token files in the layout of datatrove's DocumentTokenizer, written and read through mmap.

`NAME.ds` holds the tokens as little-endian uint16, or uint32 where ids do not fit; `NAME.ds.index`
the end of each document in tokens as little-endian uint64; `NAME.ds.metadata` three lines of text:
"tokenizer|bytes per token" (older files: the tokenizer alone, meaning 2 bytes), the number of
tokens, and that number for people.
"""

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_pretrain.atomic import appearing
from llm_pretrain.errors import UserError

Array = npt.NDArray[Any]


class Tokens(Protocol):
    """A long row of tokens that can be read anywhere."""

    def __len__(self) -> int:
        """Number of tokens."""

    def read(self, start: int, count: int) -> Array:
        """Tokens [start, start + count), shape (count,)."""


def token_dtype(token_size: int) -> np.dtype[Any]:
    """Little-endian unsigned integers of 2 or 4 bytes. Raises ValueError for other sizes."""
    if token_size not in (2, 4):
        raise ValueError(f"tokens of {token_size} bytes; only 2 and 4 exist")
    return np.dtype(f"<u{token_size}")


def token_size(vocab_size: int) -> int:
    """Bytes per token for ids below `vocab_size`: 2 while they fit, else 4."""
    return 2 if vocab_size <= 2**16 else 4


def beside(shard: Path, suffix: str) -> Path:
    """The companion of `NAME.ds`: `NAME.ds.index` or `NAME.ds.metadata`."""
    return shard.with_name(f"{shard.name}.{suffix}")


def write_shard(
    path: Path, documents: Iterable[Array], tokenizer_name: str, token_size: int
) -> tuple[int, int]:
    """Write `path` (NAME.ds) and its companions; the metadata appears last and marks completion.

    `documents` are integer arrays of shape (tokens,). Returns the numbers of tokens and documents.
    Raises ValueError for an id that does not fit, OSError when the disk refuses.
    """
    dtype = token_dtype(token_size)
    ends, total = [], 0
    with appearing(path) as file:
        for document in documents:
            if document.size and not 0 <= document.min() <= document.max() <= np.iinfo(dtype).max:
                raise ValueError(f"{path}: an id does not fit into {token_size} bytes")
            file.write(document.astype(dtype).tobytes())
            total += document.size
            ends.append(total)
    with appearing(beside(path, "index")) as file:
        file.write(np.asarray(ends, dtype="<u8").tobytes())
    with appearing(beside(path, "metadata")) as file:
        lines = (f"{tokenizer_name}|{token_size}", str(total), _readable(total))
        file.write("\n".join(lines).encode())
    return total, len(ends)


@dataclass(frozen=True)
class _Shard:
    path: Path
    dtype: np.dtype[Any]
    tokens: int
    tokenizer_name: str | None


class TokenStream:
    """All .ds files of a folder, in the order of their names, as one row of tokens.

    Files are mapped when first read; nothing is held in memory but their lengths.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError, naming the file, when there is none or one contradicts its metadata."""
        shards = [_describe(path) for path in sorted(folder.glob("*.ds"))]
        if not shards:
            raise UserError(f"{folder}: holds no .ds files of tokens")
        for shard in shards:
            if shard.dtype != shards[0].dtype:
                raise UserError(
                    f"{shard.path}: {shard.dtype.itemsize} bytes per token, but "
                    f"{shards[0].path.name} has {shards[0].dtype.itemsize}; separate the folders"
                )
        self.folder = folder
        self.dtype = shards[0].dtype
        self.shards = {shard.path: shard.tokens for shard in shards}
        self.tokenizer_names = {s.tokenizer_name for s in shards if s.tokenizer_name is not None}
        self._paths = list(self.shards)
        self._ends = list(itertools.accumulate(self.shards.values()))
        self._maps: dict[int, Array] = {}

    def __len__(self) -> int:
        """Number of tokens in all files."""
        return self._ends[-1]

    def read(self, start: int, count: int) -> Array:
        """Tokens [start, start + count), shape (count,): a read-only view where one file has them.

        Raises IndexError outside of the stream.
        """
        stop = start + count
        if count < 0 or start < 0 or stop > self._ends[-1]:
            raise IndexError(f"tokens [{start}, {stop}) of {len(self)} in {self.folder}")
        # bisect on a list is searchsorted without the cost of a numpy call, 20 times per batch row.
        shard = bisect.bisect_right(self._ends, start)
        parts = []
        while start < stop:
            tokens = self._map(shard)
            offset = start - (self._ends[shard] - tokens.size)
            parts.append(tokens[offset : offset + stop - start])
            start += parts[-1].size
            shard += 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _map(self, shard: int) -> Array:
        if shard not in self._maps:
            path = self._paths[shard]
            self._maps[shard] = np.empty(0, self.dtype)
            if self.shards[path]:  # an empty file cannot be mapped
                # Opened here: given a path, numpy looks at every folder above it. A plain view
                # slices ten times faster than np.memmap.
                with path.open("rb") as file:
                    self._maps[shard] = np.memmap(file, self.dtype, "r").view(np.ndarray)
        return self._maps[shard]


def _describe(path: Path) -> _Shard:
    metadata, size = beside(path, "metadata"), path.stat().st_size
    if not metadata.exists():
        # datatrove may be told not to write it; two bytes is what it then means.
        if size % 2:
            raise UserError(f"{path}: {size} bytes are no whole number of 2-byte tokens")
        return _Shard(path, token_dtype(2), size // 2, None)
    lines = metadata.read_text().splitlines()
    try:
        name, mark, width = lines[0].rpartition("|")
        dtype = token_dtype(int(width) if mark else 2)
        tokens = int(lines[1])
    except (IndexError, ValueError) as error:
        raise UserError(f"{metadata}: not the metadata of a token file ({error})") from error
    if size != tokens * dtype.itemsize:
        raise UserError(
            f"{path}: {size} bytes, but its metadata promises {tokens} tokens of "
            f"{dtype.itemsize} bytes; the file was cut short or belongs to other metadata"
        )
    return _Shard(path, dtype, tokens, name if mark else width)


def _readable(tokens: int) -> str:
    """Three digits and a prefix, as in '31.5 MT'."""
    rounded = int(float(f"{tokens:.2e}"))  # first, so that 999,999 is 1.00 MT and not 1000 kT
    thousands, place = divmod(len(str(rounded)) - 1, 3)
    return f"{rounded / 1000**thousands:.{2 - place}f} {' kMGTPE'[thousands].strip()}T"
