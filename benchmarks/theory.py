"""Seconds for the bound of a schedule, against its formula written down as it stands.

The plain side evaluates the theorem's three terms with a fresh sum over the rest of the run for
every update, as one reads them; its additions are in numpy. Ours takes one suffix sum. The curve,
the bound after each of many numbers of updates, is compared with a bound of its own for each of
them. The schedule is WSD with a 1-sqrt cooldown of 20%. The largest relative difference between the
bounds of the two sides is a note below.
"""

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.result import Row, load_average, parser, ratios, report
from llm_pretrain.theory.best import best_falling
from llm_pretrain.theory.bound import Array, Terms, curve, last_iterate
from llm_pretrain.theory.named import parse

SCHEDULE = "wsd-20%-1-sqrt"
MANY = 1_000_000
"""Updates of the bound that is measured alone."""


def plain(steps: Array) -> Terms:
    """The bound with D = G = 1 by its formula, in O(T^2)."""
    total = len(steps)
    rest = np.array([steps[k:].sum() for k in range(total)])  # S_k
    squares = np.array([(steps[k:] ** 2).sum() for k in range(total)])  # Q_k
    sums = (steps[:-1] / rest[1:] * squares[:-1] / rest[:-1]).sum()
    return Terms(1 / (2 * rest[0]), squares[0] / (2 * rest[0]) + sums / 2)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def turns(name: str, ours: Callable[[], object], other: Callable[[], object], n: int) -> list[Row]:
    """Rows of two things measured in turn."""
    pairs = [(seconds(ours), seconds(other)) for _ in range(n)]
    a, b = ([pair[side] for pair in pairs] for side in (0, 1))
    return [
        Row(f"{name}: ours", "ms", [1e3 * x for x in a]),
        Row(f"{name}: plain", "ms", [1e3 * x for x in b]),
        ratios(f"{name}: plain / ours", b, a),
    ]


def measure(quick: bool) -> tuple[list[Row], float]:
    """The rows, and the largest relative difference between the two sides."""
    totals, many, points, n = ((500,), 10_000, 5, 2) if quick else ((4000, 50_000), MANY, 250, 7)
    rows, differences = [], []
    for total in totals:
        steps = parse(SCHEDULE).multipliers(total)
        mine, theirs = last_iterate(steps), plain(steps)
        differences += [
            abs(mine.noise / theirs.noise - 1),
            abs(mine.distance / theirs.distance - 1),
        ]
        rows += turns(
            f"bound, {total:,} steps", lambda s=steps: last_iterate(s), lambda s=steps: plain(s), n
        )
    at = np.linspace(1, len(steps), points).astype(np.int64)
    rows += turns(
        f"curve, {len(steps):,} steps, {points} points",
        lambda: curve(steps, at),
        lambda: [last_iterate(steps[:t]) for t in at],
        n,
    )
    long = parse(SCHEDULE).multipliers(many)
    rows.append(
        Row(
            f"bound, {many:,} steps",
            "ms",
            [1e3 * seconds(lambda: last_iterate(long)) for _ in range(3 * n)],
        )
    )
    best = [1e3 * seconds(lambda: best_falling(10_000)) for _ in range(n)]
    return [*rows, Row("best schedule, 10,000 steps", "ms", best)], max(differences)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("theory", __doc__).parse_args(arguments)
    load = load_average()
    rows, difference = measure(given.quick)
    report("theory", arguments, rows, load, largest_relative_difference=f"{difference:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
