"""Checks of the node beneath a process: cores, memory, files. Nothing of torch."""

import os
import re
import socket
import tempfile
import time
from pathlib import Path

from launch.preflight.facts import Files, Host

MIB = 2**20
WRITE_BYTES = 256 * MIB
WRITE_SECONDS = 4.0
"""A slow file system ends the writing, so that it costs seconds at most."""
MIN_FREE = 1.0
"""GB below which nothing is written: a run's first checkpoints would not fit either."""

_CHUNK = 8 * MIB
_NUMA = Path("/sys/devices/system/node")


def node_name() -> str:
    """This node as sbatch's --exclude knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def look() -> Host:
    """What this process may use. Raises OSError when the kernel does not say."""
    status = Path("/proc/self/status").read_text()
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    return Host(
        cores=allowed[1] if allowed else ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        node_cores=os.cpu_count() or 1,
        policy=_policy(),
        coreless=",".join(map(str, _coreless())),
        huge_pages=_huge_pages(),
    )


def expand(ranges: str) -> set[int]:
    """The numbers of a list as the kernel writes it.

    >>> expand("0-2,8")
    {0, 1, 2, 8}
    """
    numbers: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def write(folder: Path) -> Files:
    """Room in `folder` and the speed of writing there. Raises OSError.

    The folder is made; what is written has no name, so that nothing is left even after a kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize / 1e9
    inodes = space.f_favail if space.f_files else None
    try:
        rate = _write_rate(folder) if free >= MIN_FREE else None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    return Files(str(folder), free, inodes, rate)


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _write_rate(folder: Path) -> float:
    # Noise, since some file systems compress.
    chunk = os.urandom(_CHUNK)
    written, began = 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while written < WRITE_BYTES and time.perf_counter() - began < WRITE_SECONDS:
            written += file.write(chunk)
        os.fsync(file.fileno())
        return written / (time.perf_counter() - began) / 1e9


def _policy() -> str | None:
    """The kernel names the process's policy for each mapping that has none of its own."""
    try:
        with Path("/proc/self/numa_maps").open() as maps:
            return maps.readline().split()[1]
    except (OSError, IndexError):
        return None


def _coreless() -> list[int]:
    """NUMA nodes with memory that no core is near to."""
    found = []
    for place in _NUMA.glob("node[0-9]*"):
        try:
            cores = (place / "cpulist").read_text().strip()
            memory = re.search(r"MemTotal:\s*(\d+)", (place / "meminfo").read_text())
        except OSError:
            continue
        if not cores and memory and int(memory[1]):
            found.append(int(place.name.removeprefix("node")))
    return sorted(found)


def _huge_pages() -> str | None:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else None
