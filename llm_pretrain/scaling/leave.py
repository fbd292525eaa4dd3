"""Errors on what a fit has not seen: one size, or one horizon, left out at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_pretrain.scaling.horizons import Group, by_horizon
from llm_pretrain.scaling.parametric import (
    LENGTHS,
    fits_without,
    lacking,
    predict,
    predict_tokens_only,
    tokens_only_without,
)
from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.sift import by_size
from llm_pretrain.scaling.solve import Array

Kind = Literal["size", "horizon"]


@dataclass(frozen=True)
class LeftOut:
    """What a fit without some points says about them; predicted less measured, nats."""

    kind: Kind
    """What was left out: all runs of a size, or of a horizon."""
    name: str
    beyond: bool
    """Whether it is the largest of its kind, so that the prediction extrapolates upwards."""
    count: int
    mean: float
    mean_absolute: float
    worst: float
    """The largest absolute error."""


def leave_out(points: Sequence[Point], best: Array) -> tuple[list[LeftOut], list[str]]:
    """Every size and every horizon in turn, and what could not be left out and why.

    `best`: the parameters of the fit to all.
    """
    groups = []
    refused: dict[str, list[str]] = {}
    sizes = [Group(own[0].size, tuple(own)) for own in by_size(points)]
    kinds: tuple[tuple[Kind, list[Group]], ...] = (("size", sizes), ("horizon", by_horizon(points)))
    for kind, own in kinds:
        for group in own:
            missing = _missing(points, group)
            if missing:
                refused.setdefault(missing, []).append(group.name)
            else:
                groups.append((kind, group, group is own[-1]))
    notes = [
        f"cannot be left out: {', '.join(names)}: the rest {missing}"
        for missing, names in refused.items()
    ]
    if not groups:
        return [], notes
    fits = fits_without(points, best, _kept(points, [group for _, group, _ in groups]))
    found = []
    for (kind, group, last), theta in zip(groups, fits, strict=True):
        where = np.array([[p.params for p in group.points], [p.tokens for p in group.points]])
        found.append(_compared(kind, group.name, last, predict(theta, *where), group.points))
    return found, notes


def leave_out_lengths(points: Sequence[Point]) -> tuple[list[LeftOut], list[str]]:
    """The same for the law in tokens of one size, which needs four lengths in the rest."""
    levels = sorted({p.tokens for p in points})
    size = points[0].size
    if len(levels) <= LENGTHS:
        return [], [
            f"no length of {size} can be left out: there are {len(levels)}, and a law in tokens "
            f"needs {LENGTHS} in the rest"
        ]
    groups = [
        Group(f"{size}, {level:.4g} tokens", tuple(p for p in points if p.tokens == level))
        for level in levels
    ]
    fits = tokens_only_without(points, _kept(points, groups))
    found = []
    for level, group, theta in zip(levels, groups, fits, strict=True):
        said = predict_tokens_only(theta, np.array([level] * len(group.points)))
        found.append(_compared("horizon", group.name, level == levels[-1], said, group.points))
    return found, []


def _missing(points: Sequence[Point], group: Group) -> str:
    """Why the rest has no law; empty when it has."""
    out = set(group.points)
    rest = [p for p in points if p not in out]
    missing = lacking(rest)
    if missing:
        return missing
    lengths = [len({p.tokens for p in own}) for own in by_size(points)]
    left = [len({p.tokens for p in own}) for own in by_size(rest)]
    if max(left) == 1 < max(lengths):
        return "has one length a size, which cannot tell tokens from size"
    return ""


def _kept(points: Sequence[Point], groups: Sequence[Group]) -> Array:
    """1 for what is in a fit and 0 for what is left out of it, a row a group."""
    return np.array([[float(p not in group.points) for p in points] for group in groups])


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
