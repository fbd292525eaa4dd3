"""Curves drawn in text: dots where the points are."""

import io
import os
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.text import Text

from llm_pretrain.terminal import draw, write

_MARGIN = 10
_BITS = {0: (0, 0), 1: (1, 0), 2: (2, 0), 3: (0, 1), 4: (1, 1), 5: (2, 1), 6: (3, 0), 7: (3, 1)}
"""Row and column of the dots of a Braille character, in the order of Unicode."""


def dots(rows: Sequence[str], width: int) -> set[tuple[int, int]]:
    """Column and row of each dot, both from the top left corner."""
    return {
        (2 * c + column, 4 * r + row)
        for r, line in enumerate(rows)
        for c, letter in enumerate(line[_MARGIN : _MARGIN + width])
        for bit, (row, column) in _BITS.items()
        if letter != " " and (ord(letter) - 0x2800) >> bit & 1
    }


def lines(text: Text) -> list[str]:
    return text.plain.splitlines()


def test_a_straight_line_is_a_diagonal_of_dots() -> None:
    rows = lines(draw({"line": ([0, 1], [3, 10])}, width=4, height=2))
    assert dots(rows[:2], 4) == {(k, 7 - k) for k in range(8)}


def test_logarithmic_axes_make_a_power_a_straight_line() -> None:
    xs = [10 ** (k / 7) for k in range(8)]
    curve = {"power": (xs, [x**-2 for x in xs])}
    rows = lines(draw(curve, width=4, height=2, log_x=True, log_y=True))
    assert dots(rows[:2], 4) == {(k, k) for k in range(8)}


def test_ends_are_named_and_axes_labelled() -> None:
    curves = {"falls": ([1, 20_000], [10, 0.1]), "stays": ([1, 20_000], [10, 10])}
    rows = lines(draw(curves, width=10, height=3))
    assert rows[0].startswith("       10 ")
    assert rows[0].endswith(" b")
    assert rows[2].startswith("      0.1 ")
    assert rows[2].endswith(" a")
    assert rows[3:] == ["          1   20,000", "          a falls", "          b stays"]


def test_a_constant_is_a_line() -> None:
    rows = lines(draw({"constant": ([1, 2, 3], [0, 0, 0])}, width=5, height=3))
    assert {row for _, row in dots(rows[:3], 5)} == {11}
    assert len(dots(rows[:3], 5)) == 10


def test_curves_have_colours_where_there_are_any() -> None:
    curves = {"one": ([0, 1], [0, 1]), "two": ([0, 1], [1, 0])}
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(draw(curves))
    assert captured.get().count("\x1b[36m") > 5
    assert captured.get().count("\x1b[33m") > 5


def test_a_reader_may_leave_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w", closefd=True) as closed:
        monkeypatch.setattr("sys.stdout", closed)
        write("nobody reads this\n")
        monkeypatch.undo()
