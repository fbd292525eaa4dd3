"""What a law is fitted to: trained results, and those that were left out."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FAILED = 2.0
"""A loss this many times the median of all is of a run that diverged."""
_NOISE = 0.02
"""As a share of the loss: by how much a longer run may be above a shorter one of the same kind."""


@dataclass(frozen=True)
class Point:
    """A trained result."""

    run: str
    size: str
    """What people call the model."""
    params: float
    """Trained ones, with or without those of the embedding: as the maker of the point says."""
    tokens: float
    loss: float
    """Nats per token, held out."""
    flops: float
    """Of training this result from scratch."""
    source: str
    """How it was trained: cooldown, cosine, average, constant, or another method's name."""
    seed: int = 0


@dataclass(frozen=True)
class Excluded:
    """A run that is no part of a fit, and why."""

    run: str
    reason: str


def sift(points: Sequence[Point]) -> tuple[list[Point], list[Excluded]]:
    """The points that a law can be fitted to, and the others, each with the reason."""
    kept, out = [], []
    for point in points:
        reason = _unusable(point)
        if reason:
            out.append(Excluded(point.run, reason))
        else:
            kept.append(point)
    if not kept:
        return [], out
    median = statistics.median(point.loss for point in kept)
    sound = []
    for point in kept:
        reason = _failed(point, kept, median)
        if reason:
            out.append(Excluded(point.run, reason))
        else:
            sound.append(point)
    return sound, out


def _unusable(point: Point) -> str:
    """What is no number that a law can take; empty when all are."""
    if math.isnan(point.loss):
        return "its loss is NaN"
    if not math.isfinite(point.loss) or point.loss <= 0:
        return f"its loss is {point.loss:g}"
    for name in ("params", "tokens", "flops"):
        value = getattr(point, name)
        if not math.isfinite(value) or value <= 0:
            return f"its {name} are {value:g}"
    return ""


def _failed(point: Point, others: Sequence[Point], median: float) -> str:
    """Whether training failed, from the other runs; empty when it did not."""
    if point.loss > FAILED * median:
        return f"diverged: loss {point.loss:.4g}, {FAILED:g} times the median of all or more"
    for other in others:
        alike = (other.params, other.source) == (point.params, point.source)
        if alike and other.tokens < point.tokens and point.loss > other.loss * (1 + _NOISE):
            return (
                f"noisy or diverged: loss {point.loss:.4g}, above the {other.loss:.4g} of the "
                f"shorter {other.run}"
            )
    return ""
