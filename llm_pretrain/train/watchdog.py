"""Notices that the main thread no longer gets on, when nothing raises an error in it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Calls `hung`, in a thread of its own, once the main thread has shown no sign for `seconds`.

    Collectives of gloo raise an error in the main thread when another rank is silent. NCCL's run on
    the device: the main thread waits for it without end, until NCCL aborts the process, and nobody
    says which rank was missing. It watches from the first sign on, since the first step may compile
    for minutes.
    """

    def __init__(self, seconds: float | None, hung: Callable[[], None]) -> None:
        """`seconds`: None for no watch at all."""
        self._seconds, self._hung = seconds, hung
        self._last: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def alive(self) -> None:
        """A sign of the main thread."""
        self._last = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Expect no sign within the block: how long that takes has other limits."""
        watching, self._last = self._last is not None, None
        try:
            yield
        finally:
            if watching:
                self.alive()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._end.wait(min(1.0, self._seconds / 4)):
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._hung()
                return
