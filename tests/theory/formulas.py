"""The theorem's formula as it stands, in exact arithmetic and by plain loops, and closed forms."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REFERENCE: dict[str, Any] = json.loads(Path(__file__).with_name("reference.json").read_text())
_POINT = 90
"""Binary digits behind the point of exact rates."""
_EXTRA = 120
"""And of quotients, which are rounded down there."""


def direct(steps: Sequence[float], norms: Sequence[float] | None = None) -> tuple[float, float]:
    """T1 and T2 of the three terms with D = 1, each sum taken from scratch."""
    g = norms or [1.0] * len(steps)
    rest = [math.fsum(steps[k:]) for k in range(len(steps))]
    work = [e * e * n * n for e, n in zip(steps, g, strict=True)]
    squares = [math.fsum(work[k:]) for k in range(len(steps))]
    third = (steps[k] / rest[k + 1] * squares[k] / rest[k] for k in range(len(steps) - 1))
    return 1 / (2 * rest[0]), squares[0] / (2 * rest[0]) + math.fsum(third) / 2


def exact(steps: Sequence[float]) -> tuple[float, float]:
    """The same with integers, so that no rounding is left but of 2^-120 in each quotient."""
    whole = [int(math.ldexp(step, _POINT)) for step in steps]
    assert all(math.ldexp(step, _POINT) == n for step, n in zip(steps, whole, strict=True))
    noise = rest = squares = 0
    for step in reversed(whole):
        later, rest, squares = rest, rest + step, squares + step * step
        if later:
            noise += ((step * squares) << _EXTRA) // (later * rest)
    noise += (squares << _EXTRA) // rest
    return math.ldexp(1 / rest, _POINT - 1), math.ldexp(
        float(noise >> 40), 40 - _EXTRA - _POINT - 1
    )


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n."""
    return math.fsum(1 / i for i in range(1, n + 1))


def constant(total: int) -> tuple[float, float]:
    """T1 and T2 of a constant rate."""
    return 1 / (2 * total), (1 + harmonic(total - 1)) / 2


def linear(total: int) -> tuple[float, float]:
    """T1 and T2 of e_t = 1 - (t - 1) / T."""
    a = 1 - 1 / (2 * total) + harmonic(total - 1) / total
    return 1 / (total + 1), a


def wsd_linear(total: int, cooldown: int) -> tuple[float, float]:
    """T1 and T2 with a linear cooldown of that many updates.

    T0 = T - m of them are at rate 1: the first update of a cooldown is too.
    """
    m = cooldown - 1
    t0, s = total - m, m * (2 * m + 1) / (6 * (m + 1))
    head = (6 * t0 + 2 * m - 1 + 1 / (m + 1)) / (6 * (total + t0))
    tail = (2 * m + 3 * harmonic(m)) / (3 * (m + 1))
    middle = math.fsum((j + 1 + s) / ((j + m / 2) * (j + 1 + m / 2)) for j in range(1, t0))
    return 1 / (total + t0), head + tail + middle / 2
