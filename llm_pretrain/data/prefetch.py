"""The next batches, computed on a thread while the current one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls a pure function of the step ahead of time; any step may be asked for at any time."""

    def __init__(self, compute: Callable[[int], T], depth: int = 2) -> None:
        """`compute` makes the batch of a step; `depth` steps after the last one are made ready."""
        self._compute = compute
        self._depth = depth
        self._pending: dict[int, Future[T]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def get(self, step: int) -> T:
        """The batch of `step`. Raises what `compute` raised for this step."""
        wanted = self._pending.pop(step, None) or self._thread.submit(self._compute, step)
        ahead = range(step + 1, step + 1 + self._depth)
        for other in self._pending.keys() - set(ahead):
            self._pending.pop(other).cancel()
        for other in ahead:
            if other not in self._pending:
                self._pending[other] = self._thread.submit(self._compute, other)
        return wanted.result()

    def close(self) -> None:
        """Drop what nobody asked for and wait for the thread to end."""
        self._thread.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
