"""How a multiplier falls over a cooldown, by progress p in [0, 1) (Hägele et al. 2024)."""

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda p: 1 - p,
    "1-sqrt": lambda p: 1 - math.sqrt(p),
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "mirror-cosine": lambda p: 2 * (1 - p) - (1 + math.cos(math.pi * p)) / 2,
    "square": lambda p: 1 - p * p,
}
"""Each falls from 1 at p = 0 to 0 at p = 1; "exponential" is a ratio and is treated apart."""

SHAPE_NAMES = (*SHAPES, "exponential")


def interpolate(shape: str, first: float, last: float, p: float) -> float:
    """The multiplier at progress `p` on the way from `first` to `last`.

    Additive shapes give last + (first - last) g(p); "exponential" gives first (last / first)^p,
    which is the paper's f^p for first = 1 and floor f. Raises KeyError for an unknown shape.
    """
    if shape == "exponential":
        return first * float((last / first) ** p)
    return last + (first - last) * SHAPES[shape](p)
