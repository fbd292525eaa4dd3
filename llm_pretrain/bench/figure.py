"""A measured number with its unit and all samples, and the clock that takes them."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

_WARM_UP = 2
_LEAST, _MOST = 3, 100
"""Repetitions of a measurement."""
_SECONDS = 0.3


@dataclass(frozen=True)
class Figure:
    """What was measured, in `unit`, once for each repetition."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @classmethod
    def rate(cls, name: str, unit: str, amount: float, seconds: Iterable[float]) -> "Figure":
        """`amount` of the unit in each of `seconds`."""
        return cls(name, unit, tuple(amount / s for s in seconds))

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": list(self.samples),
        }


def seconds_of(action: Callable[[], object], device: torch.device) -> tuple[float, ...]:
    """Seconds of each repetition of `action`, about 0.3 s of them, after two that do not count."""
    for _ in range(_WARM_UP):
        action()
    synchronize(device)
    began = time.perf_counter()
    action()
    synchronize(device)
    once = max(time.perf_counter() - began, 1e-9)
    return series(action, device, min(_MOST, max(_LEAST, math.ceil(_SECONDS / once))))


def series(action: Callable[[], object], device: torch.device, count: int) -> tuple[float, ...]:
    """Seconds of `count` calls of `action`, one after the other.

    A GPU is asked for its own times and waited for at the end only, so that the host can run ahead
    as it does in training.
    """
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(count):
            action()
            times.append(time.perf_counter())
        return tuple(b - a for a, b in pairwise(times))
    marks = [_mark() for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        action()
        mark.record()
    torch.cuda.synchronize(device)
    return tuple(a.elapsed_time(b) / 1e3 for a, b in pairwise(marks))


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
