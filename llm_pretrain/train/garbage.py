"""Python's search for reference cycles, at the same steps on every rank."""

import gc
from types import TracebackType
from typing import Self

EVERY = 50
"""Steps between two searches among young objects."""
ALL_EVERY = 20 * EVERY
"""Steps between two searches among all that came since the start."""


class Collector:
    """Keeps the search from starting by itself while it is entered.

    It stops the interpreter for milliseconds whenever a count of objects is reached, on each rank
    at another time, and all others wait for that rank.
    """

    def __enter__(self) -> Self:
        gc.collect()
        # What is there now stays: no later search needs to look at it.
        gc.freeze()
        gc.disable()
        return self

    def after(self, step: int) -> None:
        """Search if it is time; `step`: updates done."""
        if step % ALL_EVERY == 0:
            gc.collect()
        elif step % EVERY == 0:
            gc.collect(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        gc.enable()
        gc.unfreeze()
