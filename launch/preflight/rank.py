"""The checks that a process does by itself, each within its time."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from launch.preflight import gpu as gpus
from launch.preflight import host
from launch.preflight.facts import Gpu, Rank
from launch.preflight.limits import CheckError, Running
from llm_pretrain import provenance
from llm_pretrain.train.hardware import device_name
from llm_pretrain.world import choose_device

T = TypeVar("T")

DEVICE_SECONDS = 20.0
"""CUDA's start on a node whose other ranks do the same."""
CHECK_SECONDS = 10.0
MATMUL_SECONDS = 2.0
"""Of products; long enough for the clocks to fall where power or cooling is short."""

_SIZE_GPU, _SIZE_CPU = 8192, 1024


@dataclass
class Checks:
    """Runs checks one after the other and keeps what went wrong."""

    begin: Callable[[str], None]
    """Told the name of each check before it runs."""
    left: Callable[[], float]
    """Seconds left for all of them."""
    errors: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, check: Callable[[], T], seconds: float = CHECK_SECONDS) -> T | None:
        """The check's result; None when it raised or did not end, which is kept."""
        self.begin(name)
        return self.finish(name, Running(name, check), seconds)

    def finish(self, name: str, check: Running[T], seconds: float = CHECK_SECONDS) -> T | None:
        """The same for a check that runs already."""
        try:
            return check.result(min(seconds, self.left()))
        except CheckError as error:
            self.errors[name] = str(error)
            return None


def measure(
    checks: Checks, rank: int, local_rank: int, wanted: str, folder: Path
) -> tuple[Rank, torch.device | None]:
    """What this process finds by itself, and its device, if it has one.

    `wanted`: engine.device. `folder`: where the first process of each node tries to write.
    """
    place = checks.run("host", host.look)
    device = checks.run("gpu", lambda: choose_device(wanted, local_rank), DEVICE_SECONDS)
    gpu = None
    if device is not None and device.type == "cuda":
        gpu = checks.run("memory", lambda: gpus.memory(device), DEVICE_SECONDS)
    files = checks.run("files", lambda: host.write(folder)) if local_rank == 0 else None
    versions = checks.run("versions", _versions) or {}
    # Beside the products, for the clocks.
    asked = Running("nvidia-smi", partial(gpus.ask, gpu.uuid)) if gpu else None
    rate = checks.run("matmul", lambda: matmul(device)) if device is not None else None
    if gpu and asked:
        gpu, driver = _described(checks, gpu, asked)
        versions |= driver
    name = device_name(device) if device is not None else None
    node = host.node_name()
    found = Rank(rank, node, name, place, gpu, rate, files, versions, checks.errors)
    return found, device


def matmul(device: torch.device) -> float:
    """TFLOP/s sustained in square products: bfloat16 on a GPU, float32 on a CPU."""
    on_gpu = device.type == "cuda"
    size, count = (_SIZE_GPU, 10) if on_gpu else (_SIZE_CPU, 1)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    # Of noise: zeros or ones need less power, and clocks would stay higher than in training.
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiply(a, b, count)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < MATMUL_SECONDS:
        multiply(a, b, count)
        done += count
    return 2 * size**3 * done / elapsed / 1e12


def multiply(a: torch.Tensor, b: torch.Tensor, count: int) -> None:
    """Compute so many products of two square matrices, and wait for the last."""
    for _ in range(count):
        torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)


def _described(checks: Checks, gpu: Gpu, asked: Running[gpus.Smi]) -> tuple[Gpu, dict[str, str]]:
    """The GPU with what nvidia-smi and the kernel's log say, and the driver's version."""
    smi = checks.finish("nvidia-smi", asked)
    if smi is None:
        return gpu, {}
    driver = {name: smi.fields[name] for name in ("driver_version",) if name in smi.fields}
    return checks.run("xid", lambda: gpus.describe(gpu, smi)) or gpu, driver


def _versions() -> dict[str, str]:
    found = {**provenance.versions(), "machine": platform.machine()}
    found["cuda"] = str(torch.version.cuda)
    if torch.cuda.is_available():
        # Untyped, both.
        nccl, cudnn = torch.cuda.nccl.version(), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"nccl": ".".join(map(str, nccl)), "cudnn": str(cudnn)}
    return found
