"""Checks of a GPU by torch and by nvidia-smi, whose answers may be missing: then they are None."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.preflight.facts import Gpu

SMI_SECONDS = 8
RECENT = 24 * 3600
"""Seconds that an error in the kernel's log counts; nobody says when a GPU was reset since."""

_IDENTITY = ("uuid", "pci.bus_id", "driver_version")
_STATE = ("ecc.errors.uncorrected.volatile.total", "clocks.current.sm", "clocks.max.sm")
_QUERIES = (
    (*_IDENTITY, *_STATE, "clocks_event_reasons.hw_slowdown"),
    # Before driver 535; one unknown name makes nvidia-smi refuse all.
    (*_IDENTITY, *_STATE, "clocks_throttle_reasons.hw_slowdown"),
    _IDENTITY,
)
_REMAPPED = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi said of one GPU, by field; nothing where it cannot be asked."""

    fields: dict[str, str]

    def number(self, name: str) -> int | None:
        """A field that is a whole number."""
        text = self.fields.get(name, "")
        return int(text) if text.isdigit() else None

    def flag(self, *names: str) -> bool | None:
        """Whether any of these fields says yes; None when none is readable."""
        said = [self.fields[name].lower() for name in names if name in self.fields]
        known = [text in _YES for text in said if text in (*_YES, *_NO)]
        return any(known) if known else None


_YES = ("1", "yes", "active")
_NO = ("0", "no", "not active")


def memory(device: torch.device) -> Gpu:
    """The GPU and how much of its memory is free; before this process takes any."""
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return Gpu(str(properties.uuid), properties.total_memory / 2**30, free / total)


def ask(uuid: str) -> Smi:
    """What nvidia-smi says of this GPU now."""
    for fields in _QUERIES:
        text = _output("nvidia-smi", f"--query-gpu={','.join(fields)}", *_FORMAT)
        if text is not None:
            break
    else:
        return Smi({})
    rows = _output("nvidia-smi", f"--query-remapped-rows={','.join(_REMAPPED)}", *_FORMAT)
    return Smi({**row_of(uuid, fields, text), **row_of(uuid, _REMAPPED, rows or "")})


def describe(gpu: Gpu, smi: Smi) -> Gpu:
    """The GPU with what nvidia-smi and the kernel's log add."""
    bus = smi.fields.get("pci.bus_id")
    return Gpu(
        gpu.uuid,
        gpu.memory,
        gpu.free,
        bus=bus,
        uncorrected=smi.number("ecc.errors.uncorrected.volatile.total"),
        remap=smi.flag("remapped_rows.pending", "remapped_rows.failure"),
        xids=xids(bus),
        clock=smi.number("clocks.current.sm"),
        clock_limit=smi.number("clocks.max.sm"),
        slowdown=smi.flag(
            "clocks_event_reasons.hw_slowdown", "clocks_throttle_reasons.hw_slowdown"
        ),
    )


def row_of(uuid: str, fields: Sequence[str], text: str) -> dict[str, str]:
    """The fields of one GPU in nvidia-smi's CSV, whose first column is the uuid.

    torch leaves out the "GPU-" in front of it.
    """
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(fields) and values[0].endswith(uuid):
            return dict(zip(fields, values, strict=True))
    return {}


def xids(bus: str | None) -> list[int] | None:
    """Numbers of the GPU's recent errors in the kernel's log; None when that is not readable."""
    text = _output("dmesg") if bus else None
    if bus is None or text is None:
        return None
    try:
        now = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    return xids_in(text, bus, now)


def xids_in(log: str, bus: str, now: float) -> list[int]:
    """The same from the log's text; `now`: seconds since the machine was started."""
    found = set()
    for match in _XID.finditer(log):
        if _address(match["bus"]) == _address(bus) and now - float(match["time"]) < RECENT:
            found.add(int(match["number"]))
    return sorted(found)


_FORMAT = ("--format=csv,noheader,nounits",)
_XID = re.compile(
    r"^\[\s*(?P<time>[\d.]+)\] NVRM: Xid \(PCI:(?P<bus>[\da-fA-F:.]+)[^)]*\): (?P<number>\d+)",
    re.MULTILINE,
)


def _address(bus: str) -> tuple[int, ...]:
    """Domain, bus and device, which are written with more or fewer zeros."""
    return tuple(int(part, 16) for part in bus.partition(".")[0].split(":"))


def _output(*command: str) -> str | None:
    """What a command prints, or None. Raises TimeoutExpired: a GPU that is ill lets nvidia-smi
    hang, which is no missing answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
