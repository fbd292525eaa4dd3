"""What a law is fitted to: trained results, and those that were left out."""

from dataclasses import dataclass


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
