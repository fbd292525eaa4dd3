"""All that is known of an allocation, and how its parts are compared."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from launch.preflight.facts import Absent, Finding, Links, Rank
from llm_pretrain.config.cluster import HardwareConfig

K = TypeVar("K")


@dataclass(frozen=True)
class Evidence:
    """What the ranks of an allocation have measured, and what is expected of them."""

    ranks: Sequence[Rank]
    """Those that answered."""
    links: Mapping[int, Links]
    """By rank; empty when no all-reduce was tried."""
    absent: Sequence[Absent]
    hardware: HardwareConfig
    """What the cluster's profile promises."""

    @property
    def nodes(self) -> list[str]:
        """Every node that is known, in the order of ranks."""
        known = [rank.node for rank in self.ranks] + [a.node for a in self.absent if a.node]
        return list(dict.fromkeys(known))

    @property
    def profiled(self) -> bool:
        """Whether the devices are those that the profile has numbers for."""
        return {rank.device for rank in self.ranks} == {self.hardware.device}

    @property
    def on_cpu(self) -> bool:
        """Whether no rank has a GPU."""
        return {rank.device for rank in self.ranks} == {"CPU"}

    def by_node(self) -> dict[str, list[Rank]]:
        """The ranks that answered; none for a node that did not."""
        members: dict[str, list[Rank]] = {node: [] for node in self.nodes}
        for rank in self.ranks:
            members[rank.node].append(rank)
        return members

    def rates(self, rate: Callable[[Links], float | None]) -> dict[str, float]:
        """A bus bandwidth for each node: its slowest rank's."""
        found: dict[str, float] = {}
        for node, ranks in self.by_node().items():
            links = [self.links[rank.rank] for rank in ranks if rank.rank in self.links]
            rates = [value for one in links if (value := rate(one)) is not None]
            if rates:
                found[node] = min(rates)
        return found


def outliers(values: Mapping[K, float], share: float) -> tuple[float, list[K]]:
    """The median, and whose value is below that share of it."""
    middle = median(values.values()) if values else 0.0
    return middle, [key for key, value in values.items() if value < share * middle]


def odd(
    check: str, evidence: Evidence, values: Mapping[str, Mapping[int, str]], *, fails: bool = True
) -> Iterator[Finding]:
    """Ranks whose value differs from what most have, by name of the value.

    Without a majority nobody can say who is wrong: it is then no single node's fault.
    """
    nodes = {rank.rank: rank.node for rank in evidence.ranks}
    for name, of_ranks in values.items():
        counts = Counter(of_ranks.values()).most_common()
        if len(counts) < 2:
            continue
        usual, most = counts[0]
        if 2 * most <= len(of_ranks):
            kinds = "; ".join(
                f"{value} on {names_of([r for r, v in of_ranks.items() if v == value])}"
                for value, _ in counts
            )
            yield Finding(check, None, [], f"{name} differs: {kinds}", fails, "setup")
            continue
        strange: dict[tuple[str, str], list[int]] = {}
        for rank, value in of_ranks.items():
            if value != usual:
                strange.setdefault((nodes[rank], value), []).append(rank)
        for (node, value), ranks in strange.items():
            text = f"{name} is {value} on {names_of(ranks)}, {usual} on most"
            yield Finding(check, node, ranks, text, fails)


def names_of(ranks: Sequence[int]) -> str:
    """
    >>> names_of([0, 1, 2, 5])
    'ranks 0-2, 5'
    """
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"
