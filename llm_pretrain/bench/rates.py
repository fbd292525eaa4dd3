"""What the device can do at best: matrix products and copies."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from llm_pretrain.bench.figure import Figure, seconds_of

_SIZES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024, 2048)}
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}
"""Well beyond what caches hold."""
_TRANSFER_BYTES = 2**29
_FIRST_WITH_FP8 = (8, 9)
"""Compute capability."""


def name_of(dtype: torch.dtype) -> str:
    """As in names of figures: fp32, bf16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def matmuls(device: torch.device, dtype: torch.dtype) -> Iterator[Figure]:
    """TFLOP/s of square products of several sizes, of normal numbers.

    Their values matter: a GPU draws less power, and clocks higher, for zeros and ones.
    """
    for size in _SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        multiply = partial(torch.mm, a, b, out=torch.empty_like(a))
        yield _product(f"{name_of(dtype)} matmul {size}", size, multiply, device)


def no_fp8(device: torch.device) -> str | None:
    """Why there is no fp8 product on this device; None: there is."""
    if device.type != "cuda":
        return "not on this device: needs a GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < _FIRST_WITH_FP8:
        major, minor = capability
        return f"not on this device: compute capability {major}.{minor}, needs 8.9"
    return None


def fp8_matmuls(device: torch.device) -> Iterator[Figure]:
    """TFLOP/s of square products of fp8 (e4m3) with one scale for a matrix, results in bf16."""
    way, one = ScalingType.TensorWise, torch.ones(1, device=device)
    for size in _SIZES[device.type]:
        a, b = (_fp8(size, device) for _ in range(2))
        # The second factor by columns, the only order that the kernels know.
        multiply = partial(scaled_mm, a, b.t(), one, way, one, way, use_fast_accum=True)
        yield _product(f"fp8 matmul {size}", size, multiply, device)


def best(figures: list[Figure], kind: str) -> Figure | None:
    """The figure with the highest median of all sizes of a kind of product, such as "bf16"."""
    of = [figure for figure in figures if figure.name.startswith(f"{kind} matmul ")]
    return max(of, key=lambda figure: figure.median, default=None)


def copies(device: torch.device) -> Iterator[Figure]:
    """GB/s of copies in the device's memory, read and written bytes, and to and from the host."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    gigabytes = 2 * source.nbytes / 1e9
    yield _copy("copy in device memory", gigabytes, target, source)
    if device.type != "cuda":
        return
    host = torch.ones(_TRANSFER_BYTES, dtype=torch.uint8, pin_memory=True)
    there = target[:_TRANSFER_BYTES]
    yield _copy("copy from pinned host memory", host.nbytes / 1e9, there, host)
    yield _copy("copy to pinned host memory", host.nbytes / 1e9, host, there)


def _fp8(size: int, device: torch.device) -> Tensor:
    return torch.randn(size, size, device=device).to(torch.float8_e4m3fn)


def _product(name: str, size: int, multiply: Callable[[], object], on: torch.device) -> Figure:
    return Figure.rate(name, "TFLOP/s", 2 * size**3 / 1e12, seconds_of(multiply, on))


def _copy(name: str, gigabytes: float, target: Tensor, source: Tensor) -> Figure:
    device = target.device if target.is_cuda else source.device
    seconds = seconds_of(lambda: target.copy_(source, non_blocking=True), device)
    return Figure.rate(name, "GB/s", gigabytes, seconds)
