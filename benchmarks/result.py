"""What every benchmark prints: a table for people, then a line of JSON with all it takes to rerun.

A figure is the median of its repetitions, always shown with the smallest and the largest.
"""

import argparse
import gc
import json
import os
import shlex
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_pretrain.records import new_record

RATIO = "ratio"
"""Unit of rows that compare two things measured side by side."""
_MEMORY = Path("/proc/meminfo")
_CPU = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Row:
    """One figure, measured several times."""

    what: str
    unit: str
    samples: Sequence[float]

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """The figure and its spread, for JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "repetitions": len(self.samples),
        }

    def cells(self) -> list[str]:
        """The same for a table."""
        values = (self.median, min(self.samples), max(self.samples))
        return [self.what, self.unit, *map(_number, values), str(len(self.samples))]


def ratios(what: str, ours: Sequence[float], other: Sequence[float]) -> Row:
    """Ours over the other, pair by pair: what slows the machine down for a while hits both."""
    return Row(what, RATIO, [a / b for a, b in zip(ours, other, strict=True)])


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="tiny settings: try the code, not speed")
    made.add_argument("--markdown", action="store_true", help="print what RESULTS.md holds")
    made.add_argument(
        "--folder", type=Path, default=Path("runs"), help="disk to work on (default: %(default)s)"
    )
    return made


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `folder`, gone afterwards; hidden from `llm-pretrain`."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".benchmark-", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def report(
    name: str, arguments: Sequence[str], rows: Sequence[Row], load: float, **notes: Any
) -> None:
    """Print the table and the JSON, or with --markdown the block of RESULTS.md.

    `load` is the machine's before the measurement, as `load_average` gives it.
    """
    given = [a for a in arguments if a != "--markdown"]
    record = new_record("benchmark", total=0)
    facts = {
        "benchmark": name,
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *given]),
        "date": record.created,
        "device": device(),
        "versions": record.versions,
        "git": record.git,
        "load_before": load,
        **notes,
        "rows": [row.to_dict() for row in rows],
    }
    if "--markdown" in arguments:
        print(markdown(facts, notes, rows))
    else:
        print(plain(rows))
        print(json.dumps(facts))


def plain(rows: Sequence[Row]) -> str:
    """The rows as columns of text."""
    table = [["figure", "unit", "median", "min", "max", "n"], *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for what, unit, *numbers in table:
        right = (text.rjust(width) for text, width in zip(numbers, widths[2:], strict=True))
        lines.append("  ".join([what.ljust(widths[0]), unit.ljust(widths[1]), *right]))
    return "\n".join(lines)


def markdown(facts: dict[str, Any], notes: dict[str, Any], rows: Sequence[Row]) -> str:
    """Where, when and how it was measured, and the rows as a Markdown table."""
    where = facts["device"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v != "not installed")
    state = "with changes" if facts["git"].get("dirty") else "clean"
    lines = [
        f"- Command: `{facts['command']}`",
        f"- Device: {where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB"
        f"{', ' + where['gpu'] if where['gpu'] else ''}; {where['threads']} threads; load average "
        f"before: {facts['load_before']:.1f}",
        f"- Versions: {versions}; commit {(facts['git'].get('commit') or 'none')[:9]} ({state})",
        f"- Date: {facts['date']}",
        *(f"- {name.replace('_', ' ').capitalize()}: {value}" for name, value in notes.items()),
        "",
        "| figure | unit | median | min | max | n |",
        "|---|---|---:|---:|---:|---:|",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
    ]
    return "\n".join(lines)


def device() -> dict[str, Any]:
    """The machine: CPU model and cores as the kernel names them, memory, and the GPU if any."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _field(_CPU, "model name") or "unknown CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(int((_field(_MEMORY, "MemTotal") or "0 kB").split()[0]) / 1e6),
        "gpu": gpu,
    }


def load_average() -> float:
    """How many processes wanted a core in the last minute."""
    return os.getloadavg()[0]


def synchronize() -> None:
    """Wait until the GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Give the device back what a side has left: compiled programs, cycles, cached blocks."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _field(file: Path, key: str) -> str | None:
    lines = file.read_text().splitlines() if file.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(found, None)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:#.4g}"
