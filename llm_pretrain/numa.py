"""Binds a process to the cores beside its GPU, so that the memory it touches first lies there too.

Linux takes memory from the NUMA node of the core that first writes to it. A pinned buffer beside
another GPU would have to cross the link between the sockets in every copy.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from launch.preflight.host import expand

_SYSFS = Path("/sys")


def bind_near(device: torch.device, sysfs: Path = _SYSFS) -> str | None:
    """Keep this process to the cores beside `device`, and its intra-op threads to as many.

    Nothing is done on a CPU, nor for a process that may not run on all cores of the node: srun,
    numactl or a container have bound it. Nor where the kernel does not know what is beside the GPU.

    Returns:
        What was done, in one line; None: nothing.
    """
    if device.type != "cuda":
        return None
    return bind(_address(device), sysfs)


def bind(address: str, sysfs: Path = _SYSFS) -> str | None:
    """The same for the device at a PCI address such as '0009:01:00.0'."""
    every = _cores(sysfs / "devices/system/cpu/online")
    near = _cores(sysfs / "bus/pci/devices" / address / "local_cpulist") & every
    if not near or near == every or not os.sched_getaffinity(0) >= every:
        return None
    # Each thread has its own: those of CUDA and NCCL may run already.
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), near)
    if torch.get_num_threads() > len(near):
        torch.set_num_threads(len(near))
    return f"bound to the {len(near)} of {len(every)} cores beside GPU {address}"


def _address(device: torch.device) -> str:
    """As sysfs names it; in NVML's names the domain has more digits."""
    # torch's stub does not know these fields.
    found: Any = torch.cuda.get_device_properties(device)
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def _cores(path: Path) -> set[int]:
    """The numbers in one of the kernel's lists; none where it has no such file."""
    try:
        return expand(path.read_text().strip())
    except (OSError, ValueError):
        return set()
