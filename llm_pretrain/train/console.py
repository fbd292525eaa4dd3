"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, a log file."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from llm_pretrain.config.average import best_average

_LINE_SECONDS = 10.0


class RunConsole:
    """Reports one run; silent on ranks other than 0."""

    def __init__(self, log_path: Path, name: str, total: int, *, main: bool) -> None:
        self._main = main
        self._name = name
        self._total = total
        self._last_line = 0.0
        self._log = logging.Logger(f"llm_pretrain.{name}")
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if not main:
            return
        self._file = logging.FileHandler(log_path)
        self._file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._log.addHandler(self._file)
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task(name, total=total, text="")
            self._progress.start()

    def say(self, text: str) -> None:
        """A line for the person and the log."""
        if not self._main:
            return
        self._log.info(text)
        if self._progress:
            self._progress.console.print(f"{self._name}: {text}", highlight=False)
        else:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def failed(self, error: BaseException) -> None:
        """The whole story for the log; a person gets its message from whoever catches it."""
        if self._main:
            self._log.error("failed", exc_info=error)

    def measured(self, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        text = describe(row)
        if "val_loss" in row or row["step"] == self._total:
            self.say(f"step {row['step']}/{self._total} {text}")
        elif self._main:
            self._log.info("step %d/%d %s", row["step"], self._total, text)
            if self._progress is None and time.monotonic() - self._last_line > _LINE_SECONDS:
                self._last_line = time.monotonic()
                print(
                    f"{self._name}: step {row['step']}/{self._total} {text}{self._left(row)}",
                    file=sys.stderr,
                    flush=True,
                )
        if self._progress:
            self._progress.update(self._task, completed=row["step"], text=text)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Stop the bar and close the log."""
        if self._progress:
            self._progress.stop()
        if self._main:
            self._file.close()

    def _left(self, row: dict[str, Any]) -> str:
        per_step = row["tokens"] / row["step"]
        seconds = (self._total - row["step"]) * per_step / row["tokens_per_second"]
        return f", {seconds / 60:.0f} min left" if seconds >= 60 else f", {seconds:.0f} s left"


def describe(row: dict[str, Any]) -> str:
    """A row of metrics in words."""
    if "val_loss" in row:
        best = best_average(row)
        averaged = f", averaged {best[1]:.4f} ({best[0]})" if best else ""
        return f"val_loss {row['val_loss']:.4f} ± {row['val_stderr']:.4f}{averaged}"
    return (
        f"loss {row['loss']:.4f} lr {row['lr']:.2e} "
        f"{row['tokens_per_second']:,.0f} tokens/s mfu {row['mfu']:.1%}"
    )
