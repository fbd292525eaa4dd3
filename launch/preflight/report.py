"""The report: what was measured, what it means, and what is left for programs to read."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from launch.preflight.evidence import Evidence
from launch.preflight.facts import Finding
from launch.preflight.verdict import exclude, judge, summary
from llm_pretrain import atomic
from llm_pretrain.errors import disk_reason
from llm_pretrain.records import now

EXIT_UNFIT = 3
"""Exit code: some node, or the way that ranks were started, fails a check."""
SCHEMA = 1
"""Of preflight.json; raised when a name in it changes its meaning or goes."""
NAME = "preflight.json"
EXCLUDE = "exclude.txt"


@dataclass(frozen=True)
class Report:
    """The verdict and what it is made from."""

    evidence: Evidence
    findings: list[Finding]
    cluster: str
    """Name of the profile."""
    skipped: str | None
    """Why ranks tried no all-reduce."""
    seconds: float

    @classmethod
    def of(cls, evidence: Evidence, cluster: str, skipped: str | None, seconds: float) -> "Report":
        """Judge the evidence."""
        return cls(evidence, judge(evidence), cluster, skipped, seconds)

    @property
    def failed(self) -> bool:
        """Whether the allocation is not fit to train."""
        return any(finding.fails for finding in self.findings)

    def by_check(self) -> dict[str, list[Finding]]:
        """The findings of each check, failures first."""
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.check, []).append(finding)
        return found

    @property
    def exclude(self) -> list[str]:
        """Nodes to do without."""
        return exclude(self.findings, self.evidence.nodes)

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        return summary(self.findings, self.evidence.nodes)

    def data(self) -> dict[str, Any]:
        """What preflight.json holds. Units are those of facts.py and of the profile."""
        evidence = self.evidence
        return {
            "schema": SCHEMA,
            "fit": not self.failed,
            "summary": self.summary,
            "created": now(),
            "seconds": round(self.seconds, 1),
            "cluster": self.cluster,
            "nodes": evidence.nodes,
            "exclude": self.exclude,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "absent": [dataclasses.asdict(one) for one in evidence.absent],
            "ranks": [dataclasses.asdict(rank) for rank in evidence.ranks],
            "links": {str(r): dataclasses.asdict(one) for r, one in evidence.links.items()},
            "skipped": self.skipped,
            "hardware": TypeAdapter(type(evidence.hardware)).dump_python(evidence.hardware),
        }

    def json(self) -> str:
        """The text of preflight.json."""
        return TypeAdapter(dict[str, Any]).dump_json(self.data(), indent=2).decode() + "\n"


def save(report: Report, folder: Path) -> None:
    """Write preflight.json, and add to exclude.txt the nodes to do without.

    A full disk is among the findings; the verdict is then only printed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / NAME, report.json())
        _add(folder / EXCLUDE, report.exclude)
    except OSError as error:
        print(f"error: {disk_reason(error)}: the report is not on disk", file=sys.stderr)


def _add(path: Path, nodes: list[str]) -> None:
    """Nodes once excluded stay so until a person deletes them: a bad node may pass for once."""
    old = path.read_text().split() if path.exists() else []
    new = [node for node in nodes if node not in old]
    if new:
        atomic.write_text(path, "".join(f"{node}\n" for node in [*old, *new]))
