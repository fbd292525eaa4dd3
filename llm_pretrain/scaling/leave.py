"""Errors on what a fit has not seen: one size, or one number of tokens, left out at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import numpy as np

from llm_pretrain.scaling.parametric import (
    fits_without,
    lacking,
    predict,
    predict_tokens_only,
    tokens_only_without,
)
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.solve import Array

Kind = Literal["size", "tokens"]


@dataclass(frozen=True)
class LeftOut:
    """What a fit without some points says about them; predicted less measured, nats."""

    kind: Kind
    """What was left out: all runs of a size, or of a number of tokens."""
    name: str
    beyond: bool
    """Whether it is the largest of its kind, so that the prediction extrapolates upwards."""
    count: int
    mean: float
    mean_absolute: float
    worst: float
    """The largest absolute error."""


def leave_out(points: Sequence[Point], best: Array) -> tuple[list[LeftOut], list[str]]:
    """Every size and every number of tokens in turn, and what could not be left out and why.

    `best`: the parameters of the fit to all.
    """
    groups: list[tuple[Kind, str, bool, list[int]]] = []
    notes = []
    for kind, value in _KINDS:
        levels = sorted({value(p) for p in points})
        for level in levels:
            out = [i for i, p in enumerate(points) if value(p) == level]
            name = points[out[0]].size if kind == "size" else f"{level:.4g} tokens"
            missing = lacking([p for p in points if value(p) != level])
            if missing:
                notes.append(f"{name} cannot be left out: the rest {missing}")
            else:
                groups.append((kind, name, bool(level == levels[-1]), out))
    if not groups:
        return [], notes
    fits = fits_without(points, best, _kept(len(points), [out for *_, out in groups]))
    found = []
    for (kind, name, last, out), theta in zip(groups, fits, strict=True):
        own = [points[i] for i in out]
        where = np.array([[p.params for p in own], [p.tokens for p in own]])
        found.append(_compared(kind, name, last, predict(theta, *where), own))
    return found, notes


def leave_out_lengths(points: Sequence[Point]) -> list[LeftOut]:
    """The same for the law in tokens of one size, which five lengths at least are needed for."""
    levels = sorted({p.tokens for p in points})
    if len(levels) < 5:
        return []
    groups = [[i for i, p in enumerate(points) if p.tokens == level] for level in levels]
    fits = tokens_only_without(points, _kept(len(points), groups))
    found = []
    for level, out, theta in zip(levels, groups, fits, strict=True):
        own = [points[i] for i in out]
        said = predict_tokens_only(theta, np.array([level] * len(own)))
        name = f"{own[0].size}, {level:.4g} tokens"
        found.append(_compared("tokens", name, bool(level == levels[-1]), said, own))
    return found


def _kept(count: int, groups: Sequence[Sequence[int]]) -> Array:
    """1 for what is in a fit and 0 for what is left out of it, a row a group."""
    kept = np.ones((len(groups), count))
    for row, out in zip(kept, groups, strict=True):
        row[list(out)] = 0
    return kept


def _compared(kind: Kind, name: str, beyond: bool, said: Array, own: Sequence[Point]) -> LeftOut:
    errors = said - np.array([p.loss for p in own])
    size = np.abs(errors)
    return LeftOut(
        kind,
        name,
        beyond,
        len(own),
        float(errors.mean()),
        float(size.mean()),
        float(size.max()),
    )


_KINDS: tuple[tuple[Kind, Callable[[Point], float]], ...] = (
    ("size", attrgetter("params")),
    ("tokens", attrgetter("tokens")),
)
