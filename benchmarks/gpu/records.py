"""What the calls of a part have left behind, taken together."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import MISSING


@dataclass
class Measured:
    """One part, from one call or several."""

    part: str
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: `result` or `why` there is none."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Facts of each call: date, device, versions and so on."""

    @classmethod
    def read(cls, part: str, folders: Iterable[Path]) -> "Measured":
        """From OUT/PART.json of each folder that has one; a later result replaces an earlier."""
        found = cls(part)
        for folder in folders:
            file = folder / f"{part}.json"
            if file.is_file():
                content = json.loads(file.read_text())
                found.add(content.pop("items"), content)
        return found

    def add(self, items: Iterable[dict[str, Any]], facts: Mapping[str, Any]) -> None:
        """Take in one call. What it failed to measure does not replace what another did."""
        self.calls.append(dict(facts))
        for item in items:
            known = self.items.get(item["name"])
            if known is None or item["result"] is not None or known["result"] is None:
                self.items[item["name"]] = item

    def result(self, name: str) -> dict[str, Any] | None:
        """What was measured of an item, if it was."""
        found: dict[str, Any] | None = self.items.get(name, {}).get("result")
        return found

    def why(self, name: str) -> str:
        """Why there is no result of an item, for a cell of a table."""
        reason = self.items.get(name, {}).get("why")
        return f"no: {reason}".replace("|", "/") if reason else "not yet measured"

    def head(self) -> list[str]:
        """Lines of Markdown: how, on what, with what and when."""
        lines = [f"- Command: `bash benchmarks/gpu.sh {self.part} OUT_FOLDER`"]
        for call in self.calls:
            where, git = call["device"], call["git"]
            names = [f"{k} {v}" for k, v in call["versions"].items() if v != MISSING]
            state = "with changes" if git.get("dirty") else "clean"
            gpu = f"{where['gpu']}, {call['memory'] / 2**30:.1f} GiB; " if where["gpu"] else ""
            lines += [
                f"- Device: {gpu}{where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB; "
                f"load average before: {call['load_before']:.1f}",
                f"- Versions: {', '.join(names)}; commit {(git.get('commit') or 'none')[:9]} "
                f"({state})",
                f"- Date: {call['date']}{' (quick: no figures)' if call['quick'] else ''}",
            ]
        return list(dict.fromkeys(lines))
