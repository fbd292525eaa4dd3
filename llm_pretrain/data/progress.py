"""How far a preparation is: a bar on a terminal, now and then a line in a log, else silence."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_SILENT_SECONDS = 2.0
_LINE_SECONDS = 10.0


class Meter:
    """Counts documents and tokens, and shows them on stderr once two seconds have passed."""

    def __init__(self, label: str, show: bool) -> None:
        """`label` names what is prepared; nothing is ever shown unless `show`."""
        self._label = label
        self._show = show
        self._started = self._shown = time.monotonic()
        self._documents = self._tokens = 0
        self._bar: Progress | None = None
        self._lines = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._lines:
            self._line()

    def add(self, documents: int, tokens: int) -> None:
        """Count some more, and show the sums when it is time."""
        self._documents += documents
        self._tokens += tokens
        now = time.monotonic()
        if not self._show or now - self._started < _SILENT_SECONDS:
            return
        if sys.stderr.isatty():
            self._draw()
        elif not self._lines or now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self._line()

    def _counts(self) -> str:
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        return f"{self._documents:,} documents, {self._tokens:,} tokens, {rate:,.0f} tokens/s"

    def _draw(self) -> None:
        if self._bar is None:
            # A spinner: nobody knows the end of a stream before it is reached.
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=None)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=f"{self._label}: {self._counts()}")

    def _line(self) -> None:
        self._lines += 1
        print(f"{self._label}: {self._counts()}", file=sys.stderr, flush=True)
