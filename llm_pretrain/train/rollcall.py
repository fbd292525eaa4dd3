"""Which ranks are gone, found by those that are left: each signs in a folder that all can see."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

SECONDS = 10.0
"""Survivors notice within moments of each other: they waited for the same rank."""


def sign(folder: Path, rank: int) -> None:
    """Say that `rank` is there. Raises OSError when the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(rank)).touch()


def missing(folder: Path, size: int, seconds: float = SECONDS) -> list[int]:
    """Wait for the others, and say which of `size` ranks did not sign. Raises OSError."""
    until = time.monotonic() + seconds
    # Thousands of ranks that list a folder five times a second are a load for its server.
    pause = min(0.2 + size / 1000, seconds / 4)
    while time.monotonic() < until and len(_signed(folder)) < size:
        time.sleep(pause)
    return sorted(set(range(size)) - _signed(folder))


def clear(folder: Path) -> None:
    """Forget an earlier roll call."""
    shutil.rmtree(folder, ignore_errors=True)


def describe(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Ranks with the hosts that they are on: 'rank 3 on n2'.

    >>> describe([2, 3], ["n1", "n1", "n2", "n2"])
    'rank 2 on n2, rank 3 on n2'
    """
    return ", ".join(f"rank {rank} on {hosts[rank]}" for rank in ranks)


def _signed(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir()}
