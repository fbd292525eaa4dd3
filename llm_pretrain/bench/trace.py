"""A profiler's trace as spans of time: who called what, and what ran at each moment.

Read from the trace's file, whose format (Chrome's trace events) and categories are public and the
same on every device; the profiler's own objects have no public link from a kernel to its caller.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

K = TypeVar("K")

_HOST = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Span:
    """Something that took time, on a thread of the host or on the device."""

    name: str
    category: str
    """Kineto's: cpu_op, user_annotation, cuda_runtime, kernel, ..."""
    start: float
    """Seconds."""
    end: float
    thread: str | None
    """Of the host; of a kernel: that launched it, None where that is not known."""
    callers: tuple[str, ...]
    """Names of what it ran inside of, the outermost first; of a kernel, its launch among them."""

    @property
    def on_device(self) -> bool:
        """Whether it ran on the device."""
        return self.category in _DEVICE


@dataclass(frozen=True)
class Trace:
    """All spans in order of their starts, outer before inner."""

    host: tuple[Span, ...]
    device: tuple[Span, ...]

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """From the file that torch.profiler's export_chrome_trace has written."""
        return cls.of(json.loads(path.read_text())["traceEvents"])

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> "Trace":
        """From the events of such a file."""
        complete = [e for e in events if e.get("ph") == "X" and "cat" in e]
        threads: dict[str, list[dict[str, Any]]] = {}
        for event in complete:
            if event["cat"] in _HOST:
                threads.setdefault(f"{event['pid']}/{event['tid']}", []).append(event)
        host: list[Span] = []
        launches: dict[int, Span] = {}
        for thread, own in threads.items():
            for event, span in _nested(thread, own):
                host.append(span)
                if event["cat"] in ("cuda_runtime", "cuda_driver"):
                    launches[event.get("args", {}).get("correlation")] = span
        device = [_launched(e, launches) for e in complete if e["cat"] in _DEVICE]
        return cls(
            tuple(sorted(host, key=lambda s: (s.start, -s.end))),
            tuple(sorted(device, key=lambda s: (s.start, -s.end))),
        )

    def named(self, name: str) -> Span:
        """The one annotation of that name on the host."""
        (span,) = (s for s in self.host if s.name == name and s.category == "user_annotation")
        return span


def innermost(spans: Iterable[Span]) -> Iterator[tuple[float, float, Span]]:
    """Start, end and span of each stretch of one thread's time: the innermost that ran then."""
    stack: list[Span] = []
    now = 0.0
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        while stack and stack[-1].end <= span.start:
            done = stack.pop()
            if done.end > now:
                yield now, done.end, done
                now = done.end
        if stack and span.start > now:
            yield now, span.start, stack[-1]
        now = span.start
        stack.append(span)
    while stack:
        done = stack.pop()
        if done.end > now:
            yield now, done.end, done
            now = done.end


def exclusive(pieces: Iterable[tuple[float, float, K]], rank: Callable[[K], int]) -> dict[K, float]:
    """Seconds of each key when a moment counts once, for the running key of the lowest rank.

    The seconds add up to the time in which anything ran at all.
    """
    ordered = sorted(pieces, key=lambda piece: piece[0])
    bounds = sorted({bound for start, end, _ in ordered for bound in (start, end)})
    seconds: dict[K, float] = {}
    running: list[tuple[int, int, float, K]] = []
    position = 0
    for begin, until in pairwise(bounds):
        while position < len(ordered) and ordered[position][0] <= begin:
            _, end, key = ordered[position]
            heapq.heappush(running, (rank(key), position, end, key))
            position += 1
        while running and running[0][2] <= begin:
            heapq.heappop(running)
        if running:
            key = running[0][3]
            seconds[key] = seconds.get(key, 0.0) + until - begin
    return seconds


def _nested(thread: str, events: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Span]]:
    """Each event of one thread with its span."""
    stack: list[tuple[float, str]] = []  # end, name
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        start, end = _bounds(event)
        while stack and stack[-1][0] <= start:
            stack.pop()
        callers = tuple(name for _, name in stack)
        yield event, Span(event["name"], event["cat"], start, end, thread, callers)
        stack.append((end, event["name"]))


def _launched(event: dict[str, Any], launches: dict[int, Span]) -> Span:
    start, end = _bounds(event)
    by = launches.get(event.get("args", {}).get("correlation", -1))
    callers = (*by.callers, by.name) if by else ()
    return Span(event["name"], event["cat"], start, end, by.thread if by else None, callers)


def _bounds(event: dict[str, Any]) -> tuple[float, float]:
    """Start and end in seconds.

    Kineto writes microseconds with three decimals. In whole nanoseconds, what ends when another
    begins does so exactly, and is not taken to be around it.
    """
    start = round(event["ts"] * 1000)
    return start / 1e9, (start + round(event["dur"] * 1000)) / 1e9
