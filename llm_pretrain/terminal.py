"""What commands print beside tables: curves drawn in text, and output that a pipe may cut."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

# A help that is printed by `write` needs neither.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character, by row and column of the dot."""
Points = tuple[Sequence[float], Sequence[float]]
_PIPE_WIDTH = 200
"""Of what is printed into a pipe or a file, where nothing cuts a wide table."""


@dataclass(frozen=True)
class _Axis:
    """The range of one coordinate."""

    low: float
    high: float
    scale: Callable[[float], float]

    @classmethod
    def of(cls, values: Sequence[Sequence[float]], logarithmic: bool) -> "_Axis":
        flat = [value for part in values for value in part]
        return cls(min(flat), max(flat), math.log10 if logarithmic else float)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at the low end to 1."""
        span = self.scale(self.high) - self.scale(self.low)
        return (self.scale(value) - self.scale(self.low)) / span if span else 0.0

    @property
    def first(self) -> str:
        return _short(self.low)

    @property
    def last(self) -> str:
        return _short(self.high)


def draw(
    curves: Mapping[str, Points],
    *,
    width: int = 72,
    height: int = 14,
    log_x: bool = False,
    log_y: bool = False,
) -> "Text":
    """Curves of Braille dots, each named by a letter at its right end, and the legend.

    `curves`: x ascending and y of each, by name; `width` and `height` in characters, without axes.
    """
    from rich.text import Text  # noqa: PLC0415

    xs, ys = ([curve[axis] for curve in curves.values()] for axis in (0, 1))
    across, down = _Axis.of(xs, log_x), _Axis.of(ys, log_y)
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # (row, column) -> (dots, curve)
    ends = [""] * height
    for i, (x_values, y_values) in enumerate(zip(xs, ys, strict=True)):
        columns = [across.share(x) * (2 * width - 1) for x in x_values]
        rows = [(1 - down.share(y)) * (4 * height - 1) for y in y_values]
        for column, row in _dense(columns, rows):
            place = row // 4, column // 2
            cells[place] = cells.get(place, (0, i))[0] | _DOTS[row % 4][column % 2], i
        ends[round(rows[-1]) // 4] += _LETTERS[i]
    text = Text()
    for r in range(height):
        text.append(f"{ {0: down.last, height - 1: down.first}.get(r, ''):>9} ")
        for c in range(width):
            dots, i = cells.get((r, c), (0, 0))
            text.append(chr(_BRAILLE + dots) if dots else " ", _COLOURS[i % len(_COLOURS)])
        text.append(f" {ends[r]}\n")
    text.append(f"{'':10}{across.first}{across.last:>{width - len(across.first)}}")
    for i, name in enumerate(curves):
        text.append(f"\n{'':10}{_LETTERS[i]} {name}", _COLOURS[i % len(_COLOURS)])
    return text


def console() -> "Console":
    """Where tables go: as wide as the terminal, and so wide elsewhere that they do not fold."""
    from rich.console import Console  # noqa: PLC0415

    found = Console()
    if not found.is_terminal:
        found.width = max(found.width, _PIPE_WIDTH)
    return found


def write(text: str) -> None:
    """Print; a reader who leaves before the end, such as `head`, has what it wanted."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try the rest once more when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _dense(columns: Sequence[float], rows: Sequence[float]) -> set[tuple[int, int]]:
    """The dots on the straight lines between neighbouring points."""
    dots = {(round(columns[0]), round(rows[0]))}
    for c0, r0, c1, r1 in zip(columns, rows, columns[1:], rows[1:], strict=False):
        count = max(1, math.ceil(max(abs(c1 - c0), abs(r1 - r0)) - 1e-9))
        for k in range(1, count + 1):
            dots.add((round(c0 + (c1 - c0) * k / count), round(r0 + (r1 - r0) * k / count)))
    return dots
