"""Rules on speeds: of each rank, inside nodes and between them."""

from collections.abc import Iterator

from launch.preflight.evidence import Evidence, odd, outliers
from launch.preflight.facts import Finding

MATMUL_OF_MEDIAN = 0.9
"""GPUs of one kind differ by a few percent; CSCS accepts 10 % in its burn-in tests."""
MATMUL_OF_PROFILE = 0.75
"""Profiles hold what tuned kernels reach; torch's products of noise reach less of it."""
INSIDE_OF_MEDIAN = 0.9
PAIR_OF_MEDIAN = 0.7
"""Other jobs share the network."""
INSIDE_OF_PROFILE = 0.7
BETWEEN_OF_PROFILE = 0.5
"""CSCS's vetnode asks of Alps 250 GB/s inside a node and 50 between nodes, where 340 and 93 are
measured. A network that fell back to TCP reaches a twentieth."""
CPU_OF_MEDIAN = 0.5
"""Processes on CPUs share cores, caches and loopback with whatever else runs there."""


def matmul(evidence: Evidence) -> Iterator[Finding]:
    """Ranks that multiply slower than the others, or than the profile promises."""
    rates = {rank.rank: rank.matmul for rank in evidence.ranks if rank.matmul is not None}
    nodes = {rank.rank: rank.node for rank in evidence.ranks}
    share = CPU_OF_MEDIAN if evidence.on_cpu else MATMUL_OF_MEDIAN
    middle, slow = outliers(rates, share)
    for number in slow:
        text = f"rank {number}: {rates[number]:.3g} TFLOP/s, the median is {middle:.3g}"
        yield Finding("matmul", nodes[number], [number], text)
    promised = evidence.hardware.matmul if evidence.profiled else None
    for number, rate in rates.items():
        if promised and rate < MATMUL_OF_PROFILE * promised and number not in slow:
            text = f"rank {number}: {rate:.3g} TFLOP/s, the profile promises {promised:g}"
            yield Finding("matmul", nodes[number], [number], text, blame="unless all")


def inside(evidence: Evidence) -> Iterator[Finding]:
    """Nodes whose own links are slower than others', or than the profile promises."""
    rates = evidence.rates(lambda links: links.inside)
    middle, slow = outliers(rates, CPU_OF_MEDIAN if evidence.on_cpu else INSIDE_OF_MEDIAN)
    for node in slow:
        text = f"all-reduce inside the node: {rates[node]:.3g} GB/s, the median is {middle:.3g}"
        yield Finding("inside", node, _ranks_of(evidence, node), text)
    promised = evidence.hardware.inside_node if evidence.profiled else None
    for node, rate in rates.items():
        if promised and rate < INSIDE_OF_PROFILE * promised and node not in slow:
            text = f"all-reduce inside the node: {rate:.3g} GB/s, the profile promises {promised:g}"
            yield Finding("inside", node, _ranks_of(evidence, node), text, blame="unless all")


def between(evidence: Evidence) -> Iterator[Finding]:
    """A network that is slower than the profile promises."""
    rates = evidence.rates(lambda links: links.between)
    promised = evidence.hardware.between_nodes if evidence.profiled else None
    if promised and rates and min(rates.values()) < BETWEEN_OF_PROFILE * promised:
        text = (
            f"all-reduce between nodes: {min(rates.values()):.3g} GB/s out of a node for each "
            f"device, the profile promises {promised:g}"
        )
        # One slow link slows all; which it is, the pairs say.
        yield Finding("between", None, [], text, blame="setup")


def pairs(evidence: Evidence) -> Iterator[Finding]:
    """Nodes that are slow with both neighbours: their own link is."""
    # The better of two, so that a node is not blamed for a slow neighbour.
    best = evidence.rates(lambda links: max(links.pairs, default=None))
    middle, slow = outliers(best, CPU_OF_MEDIAN if evidence.on_cpu else PAIR_OF_MEDIAN)
    for node in slow:
        text = (
            f"all-reduce with either neighbour: {best[node]:.3g} GB/s at most, "
            f"the median is {middle:.3g}"
        )
        yield Finding("pairs", node, _ranks_of(evidence, node), text)


def network(evidence: Evidence) -> Iterator[Finding]:
    """Ranks on which NCCL found another network than the profile wants, or than the others."""
    wanted = evidence.hardware.network
    nodes = {rank.rank: rank.node for rank in evidence.ranks}
    used = {number: one.network for number, one in evidence.links.items() if one.network}
    for number, name in used.items():
        if wanted and not name.lower().startswith(wanted.lower()):
            text = f"rank {number}: NCCL uses the network '{name}', the profile wants '{wanted}'"
            yield Finding("network", nodes[number], [number], text, blame="unless all")
    if not wanted:
        yield from odd("network", evidence, {"NCCL's network": used})


def _ranks_of(evidence: Evidence, node: str) -> list[int]:
    return [rank.rank for rank in evidence.by_node()[node]]
