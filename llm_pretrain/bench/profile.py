"""One step by torch's profiler: the time of each part, and where the host waits for the device."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from llm_pretrain.bench.figure import synchronize
from llm_pretrain.bench.step import STEP, UPDATE
from llm_pretrain.bench.trace import Span, Trace, exclusive, innermost

PARTS = (
    *("matrix products", "attention", "optimizer update", "norms, elementwise and the rest"),
    *("copies between host and device", "communication"),
)
"""Of those that run at the same moment the first counts: what computation hides costs nothing."""
IDLE = {"cuda": "idle", "cpu": "outside of operators"}
"""What of a step belongs to no part, by the kind of device."""
PHASES = ("forward", "backward", "update", "unknown")
_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "_scaled_mm", "_scaled_mm_v2")
)
_PRODUCT_KERNEL = re.compile(r"gemm|cutlass|nvjet|cublas|xmma|triton_tem_\w*mm", re.IGNORECASE)
_ATTENTION = re.compile(
    r"scaled_dot_product|ScaledDotProduct|flash_attn|FlashAttn|flex_attention|varlen_attn"
    r"|sdpa|fmha|flash::|flash_fwd|flash_bwd"
)
_FUSED = re.compile(r"^triton_(poi|red|per|for)_")
"""Kernels that the compiler names after all operators around them."""
_EXCHANGE = re.compile(r"^(nccl|gloo|c10d|_c10d_functional|record_param_comms)")
_BACKWARD = "autograd::engine::evaluate_function"
_WAITS = {
    "cuda": frozenset(
        {
            *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
            *("cudaMemcpy", "cudaMemcpy2D", "cudaMemset", "cudaFree"),
            *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize"),
        }
    ),
    # A CPU waits for nobody: what would wait elsewhere is a tensor's value asked for by Python.
    "cpu": frozenset({"aten::_local_scalar_dense"}),
}
"""What makes the host wait for the device, by its kind."""
_READS_ITSELF = frozenset({"aten::_fused_adamw_"})
"""On a CPU it takes the number of steps from its tensor so; on a GPU the kernel reads that."""


@dataclass(frozen=True)
class Profile:
    """Where the time of one step went, in seconds."""

    wall: float
    """From the start of the step to the end of the last kernel."""
    busy: float
    """In which the device did anything; on a CPU, in which an operator ran."""
    parts: dict[str, float]
    """Of `busy`: each moment counts once, for the first of PARTS that ran."""
    phases: dict[str, float]
    """The same by the phase that asked for it."""
    idle: float
    hidden: float
    """Seconds of communication and copies while something else ran."""
    waits: dict[str, int]
    """How often the host waited for the device, by what made it and what that was called by."""


def profiled(step: Callable[[], object], device: torch.device, kept: Path | None = None) -> Profile:
    """Run two steps, the second under full observation. `kept`: where to leave the trace."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        path = kept or Path(folder) / "trace.json"
        with profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=1, repeat=1),
            on_trace_ready=lambda p: p.export_chrome_trace(str(path)),
            # Without, torch warns that it forgets the step before, as it should.
            acc_events=True,
        ) as profiler:
            for _ in range(2):
                synchronize(device)
                step()
                # Not a part of the step, which has left its annotation.
                synchronize(device)
                profiler.step()
        return dissect(Trace.read(path), device.type)


def dissect(trace: Trace, kind: str) -> Profile:
    """The trace of one step, annotated as such, on a device of the kind "cuda" or "cpu"."""
    whole = trace.named(STEP)
    inside = [s for s in trace.host if whole.start <= s.start < whole.end]
    if kind == "cuda":
        ran = [s for s in trace.device if s.start >= whole.start]
        pieces = [(s.start, s.end, _key(s, whole.thread)) for s in ran]
        end = max([whole.end, *(s.end for s in ran)])
    else:
        own = (s for s in inside if s.thread == whole.thread)
        pieces = [
            (start, stop, _key(span, whole.thread))
            for start, stop, span in innermost(own)
            if span.category == "cpu_op"
        ]
        end = whole.end
    return _sums(pieces, end - whole.start, _waits(inside, kind))


def _sums(
    pieces: list[tuple[float, float, tuple[str, str]]], wall: float, waits: dict[str, int]
) -> Profile:
    seconds = exclusive(pieces, lambda key: PARTS.index(key[0]))
    busy = sum(seconds.values())
    parts, phases = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PHASES, 0.0)
    for (part, phase), spent in seconds.items():
        parts[part] += spent
        phases[phase] += spent
    hidable = PARTS[-2:]
    moved = exclusive([(a, b, key[0]) for a, b, key in pieces if key[0] in hidable], PARTS.index)
    hidden = sum(moved.values()) - sum(parts[name] for name in hidable)
    return Profile(wall, busy, parts, phases, wall - busy, max(0.0, hidden), waits)


def _key(span: Span, main: str | None) -> tuple[str, str]:
    """Part and phase of what ran."""
    return _part(span), _phase(span, main)


def _phase(span: Span, main: str | None) -> str:
    if span.thread is None:
        return "unknown"
    if UPDATE in span.callers:
        return "update"
    names = (*span.callers, span.name)
    # Backward passes for a GPU have a thread of their own.
    backward = span.thread != main or any(name.startswith(_BACKWARD) for name in names)
    return "backward" if backward else "forward"


def _part(span: Span) -> str:
    names = (*span.callers, span.name)
    if any(_EXCHANGE.match(name) for name in names):
        return "communication"
    if span.category == "gpu_memcpy" and ("HtoD" in span.name or "DtoH" in span.name):
        return "copies between host and device"
    if UPDATE in span.callers:
        return "optimizer update"
    named_after_others = span.on_device and _FUSED.match(span.name)
    called = span.callers if named_after_others else names
    if any(_ATTENTION.search(name) for name in called):
        return "attention"
    operators = [name for name in names if name.startswith("aten::")]
    product = bool(operators) and operators[-1] in _PRODUCTS
    if product or (span.on_device and _PRODUCT_KERNEL.search(span.name)):
        return "matrix products"
    return "norms, elementwise and the rest"


def _waits(inside: list[Span], kind: str) -> dict[str, int]:
    return dict(
        Counter(
            _place(span)
            for span in inside
            if span.name in _WAITS[kind] and not _READS_ITSELF.intersection(span.callers)
        )
    )


def _place(span: Span) -> str:
    """What waited, and the nearest callers that say where."""
    callers = span.callers[span.callers.index(STEP) + 1 :] if STEP in span.callers else span.callers
    callers = tuple(name for name in callers if name != "aten::item")
    return " < ".join([span.name, *reversed(callers[-3:])])


def rows(profile: Profile, kind: str) -> Iterator[tuple[str, float]]:
    """Each part that took time, the longest first, and what is left of the step."""
    parts = sorted(profile.parts.items(), key=lambda item: -item[1])
    yield from ((name, seconds) for name, seconds in parts if seconds > 0)
    yield IDLE[kind], profile.idle


def to_dict(profile: Profile, kind: str) -> dict[str, Any]:
    """For JSON, in seconds."""
    return {
        "unit": "s",
        "wall": profile.wall,
        "busy": profile.busy,
        IDLE[kind].replace(" ", "_"): profile.idle,
        "parts": profile.parts,
        "phases": profile.phases,
        "hidden_communication_and_copies": profile.hidden,
        "synchronisations": sum(profile.waits.values()),
        "synchronisations_by_place": profile.waits,
    }
