"""Bytes that a rank sends in an update, by purpose and by link."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.ledger import Segment
from llm_pretrain.estimate.operation import Collective
from llm_pretrain.estimate.trace import Trace

Link = Literal["inside nodes", "between nodes"]


@dataclass(frozen=True)
class Purpose:
    """A kind of exchange."""

    name: str
    dtype: str
    ranks: int
    """Size of the groups that it is among."""
    link: Link
    neighbours: int
    """How many ranks of a group share a node, and so its way out."""
    hidden: bool
    """Whether computation goes on meanwhile, as FSDP arranges it."""


@dataclass(frozen=True)
class Flow:
    """All exchanges of a kind in one update."""

    purpose: Purpose
    count: int
    bytes: float
    """Sent by this rank, and received by it, if each group is a ring."""


class Network:
    """Which purpose and link a collective has, and how long it takes."""

    def __init__(self, layout: Layout, cluster: ClusterConfig) -> None:
        self._layout, self._cluster = layout, cluster
        self._known: dict[tuple[int, ...], tuple[Link, int]] = {}

    def purpose(self, segment: Segment, collective: Collective) -> Purpose:
        """What a collective of a segment is for."""
        link, neighbours = self._link(collective.ranks)
        return Purpose(
            self._name(segment, collective),
            collective.dtype,
            len(collective.ranks),
            link,
            neighbours,
            hidden=collective.by == "fsdp",
        )

    def sent(self, collective: Collective) -> float:
        """Bytes that each rank of a ring sends."""
        ranks = len(collective.ranks)
        share = (ranks - 1) / ranks * (2 if collective.kind == "all-reduce" else 1)
        # The whole of an all-to-all is what one rank has before.
        return collective.bytes * share / (ranks if self._gathers_for_exchange(collective) else 1)

    def seconds(self, purpose: Purpose, sent: float) -> float | None:
        """Duration of exchanges at the bandwidth of the profile; None when it is not known."""
        if sent == 0:
            return 0.0
        hardware = self._cluster.hardware
        if purpose.link == "inside nodes":
            rate = hardware.inside_node
        elif hardware.between_nodes is None:
            rate = None
        else:
            # All adapters of a node work; the ring of a group with several ranks on a node
            # leaves the node once and has theirs together.
            rate = hardware.between_nodes * purpose.neighbours
            rate = min(rate, hardware.inside_node or rate)
        return None if rate is None else sent / (rate * 1e9)

    def _name(self, segment: Segment, collective: Collective) -> str:
        if segment.name == "update":
            return "gradient norm"
        backward = segment.name.startswith("backward")
        direction = "backward" if backward else "forward"
        if collective.by == "fsdp":
            if collective.kind == "all-gather":
                return f"FSDP all-gather, {direction}"
            if collective.kind == "reduce-scatter":
                return "FSDP reduce-scatter"
            sharded = self._layout.shard * self._layout.context > 1
            return "HSDP all-reduce" if sharded else "data-parallel all-reduce"
        if self._gathers_for_exchange(collective):
            return f"context all-to-all, {direction}"
        return f"tensor {collective.kind}, {direction}"

    def _gathers_for_exchange(self, collective: Collective) -> bool:
        """Whether DTensor gathers only because a CPU's group, which is traced, has no all-to-all.

        The ranks that share a sequence exchange nothing else between DTensors.
        """
        stride = collective.ranks[1] - collective.ranks[0]
        shared = self._layout.context > 1 and stride == self._layout.tensor
        return shared and collective.by == "dtensor" and collective.kind == "all-gather"

    def _link(self, ranks: tuple[int, ...]) -> tuple[Link, int]:
        if ranks not in self._known:
            self._known[ranks] = link_of(ranks, self._layout.size, self._cluster.devices_per_node)
        return self._known[ranks]


def link_of(ranks: tuple[int, ...], world: int, per_node: int) -> tuple[Link, int]:
    """The slowest link that groups like that of rank 0 need, and their ranks on a node.

    Ranks of a group are evenly spaced, and the other groups are shifted copies of it.
    """
    stride, span = ranks[1] - ranks[0], ranks[1] - ranks[0] + ranks[-1] - ranks[0]
    fewest, crosses = len(ranks), False
    for start in range(0, world, span):
        for first in range(start, start + stride):
            nodes = Counter((first + rank) // per_node for rank in ranks)
            crosses |= len(nodes) > 1
            fewest = min(fewest, *nodes.values())
    return ("between nodes", fewest) if crosses else ("inside nodes", len(ranks))


def flows_of(trace: Trace, config: TrainConfig, network: Network, passes: int) -> list[Flow]:
    """The exchanges of one update, in the order in which their kinds first come."""
    counts: Counter[Purpose] = Counter()
    sent: defaultdict[Purpose, float] = defaultdict(float)
    times = Counter(id(s) for s in trace.order(config.model.layers, passes))
    for stretch in trace.stretches:
        for collective in stretch.segment.collectives:
            purpose = network.purpose(stretch.segment, collective)
            counts[purpose] += times[id(stretch)]
            sent[purpose] += times[id(stretch)] * network.sent(collective)
    return [Flow(purpose, count, sent[purpose]) for purpose, count in counts.items() if count]
