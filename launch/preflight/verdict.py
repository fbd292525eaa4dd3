"""The verdict: what is wrong with an allocation, and which nodes to do without."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from launch.preflight import speeds, states
from launch.preflight.evidence import Evidence
from launch.preflight.facts import Finding

_RULES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    *(states.absent, states.errors, states.devices, states.same_gpu, states.health),
    *(states.memory, states.cores, states.memory_policy, speeds.matmul, speeds.inside),
    *(speeds.between, speeds.pairs, speeds.network, states.files, states.versions),
)
_NAMED = 16
"""Nodes that one line names."""


def judge(evidence: Evidence) -> list[Finding]:
    """What is wrong, failures first."""
    found = [finding for rule in _RULES for finding in rule(evidence)]
    return sorted(found, key=lambda finding: not finding.fails)


def exclude(findings: Iterable[Finding], nodes: Sequence[str]) -> list[str]:
    """The nodes to do without. What every one of them lacks is not their fault."""
    failures = [f for f in findings if f.fails and f.node is not None]
    everywhere = Counter({(f.check, f.node) for f in failures if f.blame == "unless all"})
    counts = Counter(check for check, _ in everywhere)
    bad = {
        finding.node
        for finding in failures
        if finding.blame == "node"
        or (finding.blame == "unless all" and counts[finding.check] < len(nodes))
    }
    return [node for node in nodes if node in bad]


def summary(findings: Sequence[Finding], nodes: Sequence[str]) -> str:
    """One line: fit, or which nodes fail which checks."""
    failed = [(f.node, f.check) for f in findings if f.fails]
    if not failed:
        return f"fit to train: {len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    counts = Counter(check for _, check in set(failed))
    everywhere = {check for check in counts if len(nodes) > 1 and counts[check] == len(nodes)}
    checks: dict[str, list[str]] = {}
    for node, check in dict.fromkeys(failed):
        place = "every node" if check in everywhere else node or "no single node"
        if check not in checks.setdefault(place, []):
            checks[place].append(check)
    parts = [f"{place} ({', '.join(names)})" for place, names in checks.items()]
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return f"not fit to train: {', '.join(parts[:_NAMED])}{more}"
