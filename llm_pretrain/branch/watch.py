"""Follow a run that trains, and start each of its branches when its checkpoint appears."""

import time
from collections.abc import Callable, Sequence

from llm_pretrain.branch.plan import Branch
from llm_pretrain.branch.reconcile import Look, Predictions, Row, apply, compare
from llm_pretrain.errors import EXIT_FAILED, EXIT_OK, UserError
from llm_pretrain.runs import Run

_LEFT_ALONE = ("failed",)
"""A run that failed has had its tries; another one is for a person to ask for, by `apply`."""


class Watcher:
    """Looks again and again; what it says is what has changed since its last look.

    It keeps nothing that the directories do not: it may be killed at any time, and others may
    watch the same run.
    """

    def __init__(
        self,
        parent: Run,
        branches: Sequence[Branch],
        *,
        look: Callable[[], Look],
        foresee: Callable[[Sequence[Branch]], Predictions],
        launch: Callable[[Sequence[Run]], int],
    ) -> None:
        """`look`: asks the scheduler once. `foresee`: predicts the losses of branches about to
        start. `launch`: starts runs, or hands them over."""
        self._parent, self._branches = parent, branches
        self._look, self._foresee, self._launch = look, foresee, launch
        self._said: dict[str, str] = {}

    def watch(self, seconds: float) -> int:
        """Until nothing is left to start or to wait for; the exit code.

        That is 1 when a branch failed or can never start.
        """
        while True:
            rows, over = self.round()
            if over:
                bad = [row for row in rows if row.action == "impossible" or _failed(row)]
                return EXIT_FAILED if bad else EXIT_OK
            time.sleep(seconds)

    def round(self) -> tuple[list[Row], bool]:
        """One look, and the branches that it starts; whether there is nothing to wait for."""
        look = self._look()
        # The parent first: what it saves before it ends is there when its branches are compared.
        ended = look.status(self._parent) in ("finished", "failed")
        rows = compare(self._parent, self._branches, look)
        due = [row for row in rows if row.action in ("start", "continue") and not _failed(row)]
        for row in rows:
            self._say(row.branch.path.name, _line(row))
        if due:
            try:
                foreseen = self._foresee([row.branch for row in due])
                self._launch(apply(self._parent, due, foreseen))
            except UserError as error:
                # Such as a limit on the number of jobs, which the next round may find lifted.
                self._say("", f"not started now: {error}")
        waiting = [row for row in rows if row.action == "wait"]
        under_way = [row for row in rows if row.status in ("running", "queued")]
        return rows, not due and not under_way and (ended or not waiting)

    def _say(self, name: str, line: str) -> None:
        if self._said.get(name) != line:
            self._said[name] = line
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _failed(row: Row) -> bool:
    return row.status in _LEFT_ALONE


def _line(row: Row) -> str:
    return f"{row.branch.path.name}: {row.status}{f' ({row.reason})' if row.reason else ''}"
