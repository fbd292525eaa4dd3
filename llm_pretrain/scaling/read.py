"""Reads results to fit: tables as CSV or JSON, and the format of the published runs."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_pretrain.errors import UserError, did_you_mean
from llm_pretrain.reanalyse.load import load
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.paper import points_of
from llm_pretrain.scaling.points import Excluded, Point

_NEEDED = ("params", "tokens", "loss")
_OPTIONAL = ("flops", "source", "run", "size", "seed")
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_LEAST = {"params": 1e3, "tokens": 1e4}
"""Fewer can only be a count in other units, as 124 for 124M."""


@dataclass(frozen=True)
class Table:
    """What the files hold."""

    points: tuple[Point, ...]
    excluded: tuple[Excluded, ...]
    published: bool
    """Whether all are in the format of the published runs, which knows what N and C count."""
    counted: bool
    """Whether the FLOPs were given or counted; else they are 6 N D."""
    notes: tuple[str, ...] = ()
    """Rows that are equal in everything."""


def read(paths: Sequence[Path], counting: Counting) -> Table:
    """All points of all files. Raises UserError that names file, row and what is wrong."""
    points: list[Point] = []
    excluded: list[Excluded] = []
    published, counted, notes = [], [], []
    _check_paths(paths)
    for path in paths:
        rows = _rows(path)
        published.append(_is_published(rows))
        if published[-1]:
            found, out = points_of(load(path), counting)
            points += found
            excluded += out
            counted.append(True)
        else:
            _check_columns(rows, path)
            points += [_point(row, f"{path}: row {i}", i) for i, row in enumerate(rows, 1)]
            notes += _repeated(rows, path)
            counted.append(all(row.get("flops") not in (None, "") for row in rows))
    if len(set(counted)) > 1:
        raise UserError("flops: given for some of the files or rows only; give all or none")
    return Table(tuple(points), tuple(excluded), all(published), all(counted), tuple(notes))


def _check_paths(paths: Sequence[Path]) -> None:
    """The same runs twice would count as new ones. Raises UserError."""
    seen: dict[Path, Path] = {}
    for path in paths:
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            raise UserError(f"{path}: given twice (as {first}); name each file once")


def _repeated(rows: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """Rows that say the same as an earlier one, in words."""
    seen: dict[str, int] = {}
    notes = []
    for i, row in enumerate(rows, 1):
        first = seen.setdefault(json.dumps(row, sort_keys=True), i)
        if first != i:
            notes.append(
                f"{path.name}: row {i} is equal to row {first} and counts as one more result."
            )
    return notes


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error
    if path.suffix.lower() == ".csv":
        rows: Any = _csv_rows(path, text)
    else:
        try:
            rows = json.loads(text)
        except ValueError as error:
            said = "no JSON; a table with commas needs a name that ends in .csv"
            raise UserError(f"{path}: {said} ({error})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise UserError(f"{path}: needs rows with the columns {', '.join(_NEEDED)}")
    return rows


def _csv_rows(path: Path, text: str) -> list[dict[str, str]]:
    """Rows by column. Raises UserError for those that have more or fewer cells than the first."""
    try:
        lines = [
            line
            for line in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
            if line
        ]
    except csv.Error as error:
        raise UserError(f"{path}: no table with commas ({error})") from error
    if not lines:
        return []
    names, *rows = lines
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: column {', '.join(repeated)} twice; name each once")
    for i, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UserError(
                f"{path}: row {i} has {len(row)} cells and the first line has {len(names)}: "
                f"{', '.join(names)}"
            )
    return [dict(zip(names, row, strict=True)) for row in rows]


def _is_published(rows: Sequence[Mapping[str, Any]]) -> bool:
    return "scheduler" in rows[0] and "final_val" in rows[0]


def _check_columns(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    known = (*_NEEDED, *_OPTIONAL)
    for i, row in enumerate(rows, 1):
        for name in _NEEDED:
            if name not in row:
                has = ", ".join(str(key) for key in row)
                raise UserError(f"{path}: row {i} has no column '{name}'; it has {has}")
        for name in row:
            if name not in known:
                raise UserError(
                    f"{path}: unknown column '{name}'; {did_you_mean(str(name), known)}"
                )
    given = sum(row.get("flops") not in (None, "") for row in rows)
    if given not in (0, len(rows)):
        raise UserError(f"{path}: flops: given in {given} of {len(rows)} rows; give all or none")


def _point(row: Mapping[str, Any], where: str, i: int) -> Point:
    params, tokens = (_count(row, name, where) for name in ("params", "tokens"))
    flops = row.get("flops")
    return Point(
        run=str(row.get("run") or f"row {i}"),
        size=str(row.get("size") or f"{params / 1e6:.4g}M"),
        params=params,
        tokens=tokens,
        loss=_number(row, "loss", where),
        flops=6 * params * tokens if flops in (None, "") else _number(row, "flops", where),
        source=str(row.get("source") or "runs"),
        seed=_seed(row, where),
    )


def _seed(row: Mapping[str, Any], where: str) -> int:
    value = row.get("seed")
    if value is None or value == "":
        return 0
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(str(value))
    except ValueError as error:
        raise UserError(f"{where}: seed: '{value}' is no whole number") from error


def _count(row: Mapping[str, Any], name: str, where: str) -> float:
    value = _number(row, name, where)
    if value < _LEAST[name]:
        raise UserError(
            f"{where}: {name}: {row[name]} is too few to be a count; its unit is unknown: write "
            f"all of them, or a number with K, M, B or T, such as 124M"
        )
    return value


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    """A number as such or as text, perhaps with K, M, B or T. An absent loss is NaN."""
    value = row[name]
    if name == "loss" and (value is None or value == ""):
        return math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip().replace("_", "")
    unit = text[-1:].upper() if name != "loss" and text[-1:].isalpha() else ""
    number = text[:-1] if unit else text
    try:
        if unit and text.lower() not in ("nan", "inf", "-inf"):
            return float(number) * _UNITS[unit]
        return float(text)
    except (ValueError, KeyError) as error:
        units = "" if name == "loss" else ", or one with K, M, B or T"
        raise UserError(f"{where}: {name}: '{value}' is no number{units}") from error
