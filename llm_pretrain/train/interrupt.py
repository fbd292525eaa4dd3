"""When to stop early: a signal, or too little time left. The loop then saves and ends."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Whether a stop was asked for, and by which signal."""

    def __init__(self) -> None:
        self.by: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the second Ctrl-C ends the process at once."""
        if self.by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.by = signal.Signals(number).name


class Deadline:
    """The end of the job that this process is part of, if it has one."""

    ENVIRONMENT = "LLM_PRETRAIN_END"
    """Variable with the time at which the job will be killed, in seconds since 1970."""
    _RESERVE = 20.0
    """Seconds for what is not measured: to end the processes, and a file system's bad moment."""

    def __init__(self) -> None:
        end = os.environ.get(self.ENVIRONMENT)
        self._end = float(end) if end else None
        self._longest, self._last = 0.0, time.time()

    def near(self, saving: float) -> bool:
        """Whether the next step could be the last that leaves time to save; called once a step.

        `saving`: seconds that a save takes. What happens between two calls counts as a step, so an
        evaluation does too.
        """
        now = time.time()
        # Slowly forgotten, since the first step compiles for minutes and no other does.
        self._longest, self._last = max(self._longest * 0.999, now - self._last), now
        # A vote takes a step to be counted, and then there is the step itself.
        needed = 2 * self._longest + 2 * saving + self._RESERVE
        return self._end is not None and now + needed > self._end


@contextmanager
def watch() -> Iterator[StopFlag]:
    """Turn signals into a flag inside the block."""
    flag = StopFlag()
    previous = {number: signal.signal(number, flag) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
