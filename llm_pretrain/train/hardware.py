"""Peak matrix throughput: datasheet values by exact device name, else a measurement."""

import time
from dataclasses import dataclass

import torch

PEAK_BF16 = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 120GB": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA GH200 144G HBM3e": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
}
"""Dense bf16 FLOP/s from NVIDIA's datasheets, half of what they print with sparsity. The names are
torch.cuda.get_device_name()'s, whole: a part of a name is no key ('H200' is inside 'GH200')."""
PEAK_FP8 = {
    "NVIDIA H100 80GB HBM3": 1979e12,
    "NVIDIA H100 PCIe": 1513e12,
    "NVIDIA H100 NVL": 1671e12,
    "NVIDIA H200": 1979e12,
    "NVIDIA GH200 120GB": 1979e12,
    "NVIDIA GH200 480GB": 1979e12,
    "NVIDIA GH200 144G HBM3e": 1979e12,
    "NVIDIA B200": 4500e12,
    "NVIDIA GB200": 5000e12,
}
"""Dense fp8 FLOP/s of the same devices. No denominator of MFU: a run in fp8 does attention and its
head in bf16."""

_SIZE = 2048
_SECONDS = 0.3


@dataclass(frozen=True)
class Peak:
    """The denominator of MFU."""

    flops: float
    """FLOP/s of one device."""
    source: str
    """Where the number is from, for start-up output and run.json."""


def device_name(device: torch.device) -> str:
    """The name that the peak table is keyed by."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak for matrix products in `dtype`: the datasheet's for bf16 on a known device."""
    name = device_name(device)
    if dtype == torch.bfloat16 and name in PEAK_BF16:
        return Peak(PEAK_BF16[name], f"datasheet, dense bf16, {name}")
    rate = measure_matmul(device, dtype)
    kind = str(dtype).removeprefix("torch.")
    return Peak(rate, f"measured {kind} matmul of {_SIZE}, {name}")


def measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square matrix product seen in about 0.3 s."""
    # A GPU clocks higher for ones than for numbers as they occur. What the global generators hold
    # is part of a checkpoint, so they are left alone.
    draw = torch.Generator(device).manual_seed(0)
    a = torch.randn(_SIZE, _SIZE, device=device, dtype=dtype, generator=draw)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _SECONDS or best == float("inf"):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best
