"""An end to checks that would never end."""

import re
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from llm_pretrain.errors import disk_reason

T = TypeVar("T")

_NAME = "preflight: "


class CheckError(Exception):
    """A check that raised, or that did not end in time; the message says which."""


class Running(Generic[T]):
    """A check that runs in a thread of its own, where it may stay when it does not end."""

    def __init__(self, name: str, check: Callable[[], T]) -> None:
        self._results: list[T] = []
        self._errors: list[Exception] = []
        self._check = check
        self._thread = threading.Thread(target=self._run, name=_NAME + name, daemon=True)
        self._thread.start()

    def result(self, seconds: float) -> T:
        """Its result, if there is one within so many seconds. Raises CheckError."""
        self._thread.join(max(0.0, seconds))
        if self._errors:
            raise CheckError(_reason(self._errors[0])) from self._errors[0]
        if not self._results:
            raise CheckError(f"did not end within {max(0.0, seconds):.0f} s")
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._check())
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what the check found)
            self._errors.append(error)


def hung() -> bool:
    """Whether a check still runs, so that this process cannot end in an orderly way."""
    return any(thread.name.startswith(_NAME) for thread in threading.enumerate())


def _reason(error: Exception) -> str:
    """What a person needs of it; torch adds places in its source and stack traces."""
    if isinstance(error, OSError):
        return disk_reason(error)
    text = str(error).partition("\nException raised from")[0]
    text = re.sub(r"^\[\S+:\d+\] ", "", text.partition(". This is typically")[0])
    return " ".join(text.split())[:400] or type(error).__name__
