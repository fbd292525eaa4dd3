"""Which ranks did not answer, and where they are or must be."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from launch.preflight.facts import Absent


@dataclass(frozen=True)
class Seen:
    """What a rank said of itself while it lived."""

    node: str
    ranks_here: int
    """Ranks that its launcher started on its node."""
    check: str
    """What it began last."""


def absent(
    size: int, answered: set[int], seen: Mapping[int, Seen], nodes: str | None = None
) -> list[Absent]:
    """The ranks that did not answer, by node and by what they began last.

    `nodes`: Slurm's list of the step. Ranks that never began must be on a node that has fewer
    ranks than its launcher started there, or that nobody has spoken from.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for rank in sorted(set(seen) - answered):
        groups.setdefault((seen[rank].node, seen[rank].check), []).append(rank)
    found = [Absent(ranks, node, check) for (node, check), ranks in groups.items()]
    silent = sorted(set(range(size)) - answered - set(seen))
    if silent:
        places = _candidates(seen, nodes) or [None]
        found += [Absent(silent, node, None) for node in places]
    return found


def expand_hosts(nodes: str) -> list[str]:
    """The names in Slurm's list of nodes.

    >>> expand_hosts("nid[001-003,010],login1")
    ['nid001', 'nid002', 'nid003', 'nid010', 'login1']
    """
    result: list[str] = []
    for part in re.split(r",(?![^\[]*\])", nodes):
        names = [""]
        for piece in re.split(r"(\[[^\]]*\])", part):
            ends = _numbers(piece[1:-1]) if piece.startswith("[") else [piece]
            names = [name + end for name in names for end in ends]
        result += names
    return result


def _numbers(ranges: str) -> list[str]:
    """'001-003,010' with the zeros in front."""
    found = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            found.append(str(number).zfill(len(first)))
    return found


def _candidates(seen: Mapping[int, Seen], nodes: str | None) -> list[str | None]:
    counts = Counter(one.node for one in seen.values())
    started = {one.node: one.ranks_here for one in seen.values()}
    short = [node for node in counts if counts[node] < started[node]]
    unheard = [node for node in expand_hosts(nodes or "") if node and node not in counts]
    return [*short, *unheard]
