"""Which runs of different sizes have the same horizon."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_pretrain.scaling.points import Point
from llm_pretrain.scaling.sift import by_size


@dataclass(frozen=True)
class Group:
    """Runs that are left out of a fit together."""

    name: str
    points: tuple[Point, ...]


def by_horizon(points: Sequence[Point]) -> list[Group]:
    """All runs, in groups of one horizon, the shortest first.

    Runs of different sizes have the same horizon by their tokens, or, where sizes share none of
    these, by their tokens per parameter (to two digits), or else by their rank: the shortest of
    each size, and so on.
    """
    tokens = _grouped(points, lambda p: p.tokens)
    if _shared(tokens, points):
        return [Group(f"{level:.4g} tokens", own) for level, own in tokens]
    ratios = _grouped(points, lambda p: float(f"{p.tokens / p.params:.2g}"))
    if _shared(ratios, points):
        return [Group(f"{level:g} tokens per parameter", own) for level, own in ratios]
    return _by_rank(points)


def _grouped(
    points: Sequence[Point], level: Callable[[Point], float]
) -> list[tuple[float, tuple[Point, ...]]]:
    levels = sorted({level(p) for p in points})
    return [(one, tuple(p for p in points if level(p) == one)) for one in levels]


def _shared(groups: Sequence[tuple[float, Sequence[Point]]], points: Sequence[Point]) -> bool:
    """Whether a group holds half of the sizes or more, on average."""
    counts = [len({p.params for p in own}) for _, own in groups]
    return 2 * sum(counts) >= len(counts) * len({p.params for p in points})


def _by_rank(points: Sequence[Point]) -> list[Group]:
    """The first of each size, the second of each, and so on; the last are the longest of each."""
    ranks: dict[int, list[Point]] = {}
    most = max(len({p.tokens for p in own}) for own in by_size(points))
    for own in by_size(points):
        levels = sorted({p.tokens for p in own})
        for p in own:
            longest = p.tokens == levels[-1] and len(levels) > 1
            rank = most - 1 if longest else levels.index(p.tokens)
            ranks.setdefault(rank, []).append(p)
    names = {0: "the shortest of each size", most - 1: "the longest of each size"}
    return [
        Group(names.get(rank, f"length {rank + 1} of each size"), tuple(ranks[rank]))
        for rank in sorted(ranks)
    ]
