"""What is done with files below a folder, in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def operations(below: Path) -> Iterator[list[str]]:
    """Collects what is opened, listed and looked at below a folder."""
    seen: list[str] = []

    def note(path: object) -> None:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(below)):
            seen.append(os.fspath(path))

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *arguments: Any, **options: Any) -> Any:
            note(path)
            return function(path, *arguments, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", noting(os.stat))
        patch.setattr(os, "lstat", noting(os.lstat))
        _NOTES.append(note)
        yield seen
        _NOTES.remove(note)


_NOTES: list[Callable[[object], None]] = []
"""Who is told by the hook below, which cannot be taken back."""


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.scandir", "os.listdir"):
        for note in _NOTES:
            note(arguments[0])


sys.addaudithook(_hook)
