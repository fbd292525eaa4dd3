"""TFLOP/s and exactness of the attention kernels that run here, with and without documents.

Operations are counted as elsewhere in this project: two products of 2 D for each pair of a position
and one that it may see, three times that with the backward pass. With documents the count stays the
same, so a kernel that skips what they hide shows a higher figure. The kernels take turns. On a GPU
a case has 16384 tokens and 2048 channels in bfloat16; on a CPU it is small, in float32. The largest
relative errors of output and gradients, against the plain computation in float64 on other random
numbers each time, are a note below, like the kernels that were left out and why.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.result import Row, load_average, parser, ratios, report, synchronize
from llm_pretrain.engine.trial import KERNELS, Sample, Shape, errors, refusal
from llm_pretrain.model.attention import Backend, backend

BASE = "flash"
"""The kernel that others are compared with: torch has it on every device."""
ROUNDS = 3
"""Random inputs that errors are taken over."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    shape: Shape
    masked: bool

    @property
    def name(self) -> str:
        """For a row."""
        documents = "documents" if self.masked else "causal"
        return f"T {self.shape.length}, D {self.shape.head_dim}, {documents}"

    @property
    def tera_operations(self) -> float:
        """Of a forward pass, in 10^12; see `llm_pretrain.model.flops`."""
        s = self.shape
        return 2 * s.batch * s.length * (s.length + 1) * s.heads * s.head_dim / 1e12


def cases(device: torch.device, quick: bool) -> list[Case]:
    """From short to long."""
    if quick:
        shapes = [Shape(1, 64, 2, 1, 16)]
    elif device.type == "cpu":
        shapes = [Shape(1, length, 4, 2, 64) for length in (512, 1024)]
    else:
        shapes = [
            Shape(16384 // length, length, 2048 // head_dim, 512 // head_dim, head_dim)
            for head_dim in (64, 128)
            for length in (2048, 4096, 8192)
        ]
    return [Case(shape, masked) for shape in shapes for masked in (False, True)]


def numerics(
    kernel: Backend, device: torch.device, dtype: torch.dtype, shape: Shape, masked: bool
) -> dict[str, float]:
    """Relative errors of output, dq, dk and dv: the largest over some rounds of random inputs.

    Before each the memory that the kernel gets is filled with NaN.
    """
    rounds = [
        errors(kernel, Sample.of(shape, device, dtype, masked=masked, seed=seed))
        for seed in range(1, ROUNDS + 1)
    ]
    return {part: largest(r[part] for r in rounds) for part in rounds[0]}


def largest(found: Iterable[float]) -> float:
    """NaN if one is: max() may pass over it."""
    return torch.tensor(list(found), dtype=torch.float64).max().item()


def turn(kernel: Backend, sample: Sample) -> tuple[float, float]:
    """Seconds of a forward pass, and of one with its backward pass."""
    q, k, v = (x.detach().requires_grad_() for x in (sample.q, sample.k, sample.v))
    mask = kernel.mask(sample.documents, q.shape[1])

    def forward() -> None:
        with torch.no_grad():
            kernel(q, k, v, mask)

    def both() -> None:
        torch.autograd.grad(kernel(q, k, v, mask), (q, k, v), sample.gradient)

    return seconds(forward), seconds(both)


def seconds(work: Callable[[], None]) -> float:
    """Of the fastest of a few runs in a row, which leaves out what else the machine did."""
    # Several at once where the host only starts them, so that the wait for their end weighs less.
    calls = 10 if torch.cuda.is_available() else 1
    times = []
    for _ in range(4):
        synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize()
        times.append((time.perf_counter() - began) / calls)
    return min(times[1:])


def measure_case(case: Case, kernels: Sequence[Backend], sample: Sample, turns: int) -> list[Row]:
    """Rows of each kernel, and of each against the base."""
    speeds: dict[str, tuple[list[float], list[float]]] = {k.name: ([], []) for k in kernels}
    for _ in range(turns):
        for kernel in kernels:
            forward, both = turn(kernel, sample)
            speeds[kernel.name][0].append(case.tera_operations / forward)
            speeds[kernel.name][1].append(3 * case.tera_operations / both)
    rows = []
    for i, passes in enumerate(("forward", "both passes")):
        what = f"{case.name}, {passes}"
        rows += [Row(f"{what}: {name}", "TFLOP/s", speed[i]) for name, speed in speeds.items()]
        base = speeds.get(BASE)
        if base is not None:
            rows += [
                ratios(f"{what}: {name} / {BASE}", speed[i], base[i])
                for name, speed in speeds.items()
                if name != BASE
            ]
    return rows


def measure(
    device: torch.device, quick: bool
) -> tuple[list[Row], dict[str, float], dict[str, str]]:
    """The rows, the largest error of each kernel, and why others were left out."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    rows, worst, left_out = list[Row](), dict[str, float](), dict[str, str]()
    for case in cases(device, quick):
        sample, kernels = Sample.of(case.shape, device, dtype, masked=case.masked), []
        for name in KERNELS:
            reason = refusal(name, case.shape, device, dtype, masked=case.masked)
            if reason is None and name == "math" and device.type == "cuda":
                reason = "it keeps all scores"
            if reason is not None:
                left_out[name] = reason
                continue
            kernels.append(backend(name))
            found = numerics(kernels[-1], device, dtype, small(case.shape), case.masked)
            worst[name] = largest([worst.get(name, 0.0), *found.values()])
        rows += measure_case(case, kernels, sample, 2 if quick else 5)
    return rows, worst, left_out


def small(shape: Shape) -> Shape:
    """Short enough for all scores in float64."""
    return Shape(1, min(shape.length, 1024), shape.heads, shape.kv_heads, shape.head_dim)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("attention", __doc__).parse_args(arguments)
    load = load_average()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, worst, left_out = measure(device, given.quick)
    report(
        "attention",
        arguments,
        rows,
        load,
        largest_relative_errors=", ".join(f"{name} {error:.1e}" for name, error in worst.items()),
        left_out="; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "none",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
