"""All that is measured, in order, and the whole of it as data."""

import gc
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llm_pretrain.bench import profile as profiling
from llm_pretrain.bench.figure import Figure
from llm_pretrain.bench.floor import Floor, Rates, floors
from llm_pretrain.bench.modules import Alone, modules
from llm_pretrain.bench.profile import Profile
from llm_pretrain.bench.rates import best, copies, fp8_matmuls, matmuls, name_of, no_fp8
from llm_pretrain.bench.step import Stepper, Timed, timed, utilisation
from llm_pretrain.config.schema import TrainConfig, to_dict
from llm_pretrain.engine.choices import Settled
from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.provenance import Code
from llm_pretrain.records import now
from llm_pretrain.train.hardware import PEAK_BF16, PEAK_FP8, device_name
from llm_pretrain.world import World

Say = Callable[[str], None]
DATASHEET, MEASURED = "datasheet", "measured matmul"
COUNTINGS = {"full square": False, "causal": True}
"""How operations of attention are counted, and what flops_per_token calls it."""
NOT_MEASURED = "not measured: torch keeps no account of a CPU's memory"


@dataclass(frozen=True)
class Result:
    """What was measured on this rank."""

    settled: Settled
    world: World
    rates: list[Figure]
    fp8_missing: str | None
    """Why there is no figure of fp8 products."""
    alone: list[Alone]
    step: Timed
    passes: int
    profile: Profile
    floors: dict[str, Floor]

    @property
    def config(self) -> TrainConfig:
        """With names in place of every auto."""
        return self.settled.config

    @property
    def kind(self) -> str:
        """Of products outside of fp8: bf16 or fp32."""
        return name_of(product_dtype(self.config))

    @property
    def tokens(self) -> int:
        """Of one step, over all ranks."""
        return self.config.data.global_batch * self.config.data.sequence_length

    @property
    def rows(self) -> int:
        """Sequences of a pass of one device."""
        return self.config.data.global_batch // self.world.data_size // self.passes

    @property
    def peaks(self) -> dict[str, float]:
        """FLOP/s to compare with, by where they are from; that of the datasheet if it is known."""
        measured = best(self.rates, self.kind)
        assert measured is not None
        name = device_name(self.world.device)
        known = {DATASHEET: PEAK_BF16[name]} if self.kind == "bf16" and name in PEAK_BF16 else {}
        return {**known, MEASURED: measured.median * 1e12}

    @property
    def flops(self) -> dict[str, float]:
        """Operations of one device in one step, by the name of the counting."""
        config = self.config
        return {
            name: flops_per_token(config.model, config.data.sequence_length, causal)
            * self.tokens
            / self.world.size
            for name, causal in COUNTINGS.items()
        }

    def utilisation(self) -> list[dict[str, Any]]:
        """MFU, by each counting and against each peak; for fp8 it has another name."""
        fp8 = self.config.precision.name == "fp8"
        return utilisation(self.flops, self.step.seconds.median, self.peaks, fp8=fp8)

    def tokens_per_second(self, devices: int) -> Figure:
        """Of so many devices out of all."""
        share = self.tokens * devices / self.world.size
        name = "tokens per second" if devices > 1 else "tokens per second and device"
        return Figure.rate(name, "tokens/s", share, self.step.seconds.samples)

    def to_dict(self, held: int, arguments: list[str]) -> dict[str, Any]:
        """For JSON. `held`: bytes on the device by the estimate of `llm-pretrain estimate`."""
        return {
            "date": now(),
            "command": ["llm-pretrain", "bench", *arguments],
            **self._machine(),
            "computes": self.settled.to_dict(),
            "config": to_dict(self.config),
            "rates": [f.to_dict() for f in self.rates],
            "missing": {"fp8 matmul": self.fp8_missing} if self.fp8_missing else {},
            "modules": [alone.to_dict() for alone in self.alone],
            "step": self._step(),
            "memory": self.memory(held),
            "profile": profiling.to_dict(self.profile, self.world.device.type),
            "floors": {part: asdict(floor) for part, floor in self.floors.items()},
        }

    def _machine(self) -> dict[str, Any]:
        name, code = device_name(self.world.device), Code.current()
        tables = (("bf16", PEAK_BF16), ("fp8", PEAK_FP8))
        return {
            "host": socket.gethostname(),
            "device": name,
            "devices": self.world.size,
            "threads": torch.get_num_threads(),
            "datasheet_tflops": {k: t[name] / 1e12 if name in t else None for k, t in tables},
            "versions": code.versions,
            "git": code.git,
        }

    def _step(self) -> dict[str, Any]:
        seconds = self.step.seconds
        return {
            "passes": self.passes,
            "tokens": self.tokens,
            "loss": self.step.loss,
            "seconds": seconds.to_dict(),
            "tokens_per_second": self.tokens_per_second(self.world.size).to_dict(),
            "tokens_per_second_per_device": self.tokens_per_second(1).to_dict(),
            "tflops_per_device": {n: f / seconds.median / 1e12 for n, f in self.flops.items()},
            "utilisation": self.utilisation(),
        }

    def memory(self, held: int) -> dict[str, Any]:
        """What tensors had on this rank's device, beside the estimate of it."""
        found: dict[str, Any] = {"unit": "bytes", "estimated": held}
        if self.step.memory is None:
            return {**found, "missing": NOT_MEASURED}
        measured = {"peak_allocated": self.step.memory, "peak_reserved": self.step.reserved}
        return {**found, **measured, "ratio_to_estimate": self.step.memory / held}


def measure(
    settled: Settled, world: World, say: Say, steps: int | None = None, trace: Path | None = None
) -> Result:
    """Measure everything, in this order, on all ranks at the same time.

    `say`: told what is being measured. `steps`: to time, after the warm-up. `trace`: where to leave
    the profiler's.
    """
    config, device = settled.config, world.device
    missing = no_fp8(device)
    rates = list(_rates(config, device, say, fp8=missing is None))
    alone = list(modules(config, world, say))
    # What belongs to no step must not be in its memory.
    _free(device)
    say("whole step: the engine")
    stepper = Stepper(config, world)
    say("whole step: time")
    step = timed(stepper, world, steps)
    say("whole step: profile")
    seen = profiling.profiled(stepper.step, device, trace if world.main else None)
    found = floors(config, world.layout, stepper.count, alone[0], _medians(config, rates))
    return Result(settled, world, rates, missing, alone, step, stepper.count, seen, found)


def product_dtype(config: TrainConfig) -> torch.dtype:
    """Of the matrix products that are not in fp8."""
    return torch.float32 if config.precision.name == "fp32" else torch.bfloat16


def _rates(config: TrainConfig, device: torch.device, say: Say, *, fp8: bool) -> Iterator[Figure]:
    kinds = {product_dtype(config)}
    kinds |= {torch.bfloat16} if device.type == "cuda" else set()
    for dtype in sorted(kinds, key=str):
        say(f"{name_of(dtype)} matrix products")
        yield from matmuls(device, dtype)
    if fp8:
        say("fp8 matrix products")
        yield from fp8_matmuls(device)
    say("copies")
    yield from copies(device)


def _medians(config: TrainConfig, rates: list[Figure]) -> Rates:
    kind, eight = best(rates, name_of(product_dtype(config))), best(rates, "fp8")
    assert kind is not None
    (copy,) = (f for f in rates if f.name == "copy in device memory")
    return Rates(kind.median * 1e12, eight.median * 1e12 if eight else None, copy.median * 1e9)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
