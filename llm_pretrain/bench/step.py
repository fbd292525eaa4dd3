"""The whole step: the engine that trains, on random tokens, updated as the training loop does."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from llm_pretrain.bench.figure import Figure, series, synchronize
from llm_pretrain.config.layout import passes
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.base import Engine
from llm_pretrain.engine.build import build_engine
from llm_pretrain.train.garbage import Collector
from llm_pretrain.world import World

WARM_UP = 3
STEPS = 10
_LEAST = 3
_SECONDS = 10.0
STEP, UPDATE = "bench: step", "bench: update"
"""Names of the stretches of a trace that are one step, and in it the part after all passes."""


class Stepper:
    """An engine and a batch, of which it makes one update after the other."""

    def __init__(self, config: TrainConfig, world: World, *, engine: Engine | None = None) -> None:
        """`config` is settled. `engine`: another one than the config's, for a test."""
        self._lr = config.optimizer.lr
        self._world = world
        # A mask of documents needs the token that ends one; which of random ones does not matter.
        self.engine = engine or build_engine(config, world, end_of_text=0)
        data = config.data
        self.count = passes(data, world.layout)
        rows = data.global_batch // world.data_size
        # As many sequences in a pass as in the training loop, from host memory as there.
        generator = torch.Generator("cpu").manual_seed(world.data_rank)
        tokens = torch.randint(
            config.model.vocab_size, (rows, data.sequence_length + 1), generator=generator
        )
        tokens = tokens.pin_memory() if world.device.type == "cuda" else tokens
        self._passes = torch.split(tokens, data.micro_batch)
        self.tokens = data.global_batch * data.sequence_length
        """Of one step, over all ranks."""

    def step(self) -> Tensor:
        """One update; this rank's loss, on its device, which it does not wait for."""
        with record_function(STEP):
            total = torch.zeros((), device=self._world.device)
            for i, tokens in enumerate(self._passes):
                last = i == self.count - 1
                total += self.engine.forward_backward(tokens, weight=1 / self.count, last=last)
            with record_function(UPDATE):
                self.engine.step(self._lr)
        return total


@dataclass(frozen=True)
class Timed:
    """Steps that were measured."""

    seconds: Figure
    memory: int | None
    """Most bytes that tensors of this rank have had on its device; None on a CPU."""
    reserved: int | None
    """Most bytes that torch has taken from the device for them."""
    loss: float
    """Of the last step on this rank, in nats."""


def timed(stepper: Stepper, world: World, steps: int | None) -> Timed:
    """Measure steps after three that do not count; None: ten, or as many as fit into 10 s."""
    device = world.device
    for _ in range(WARM_UP - 1):
        stepper.step()
    synchronize(device)
    (once,) = series(stepper.step, device, 1)
    fitting = min(STEPS, max(_LEAST, math.floor(_SECONDS / once)))
    # Ranks that did not take the same number of steps would wait for each other for ever.
    count = steps or world.on_main(lambda: fitting)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[Tensor] = []
    with Collector():
        seconds = series(lambda: losses.append(stepper.step()), device, count)
    cuda = device.type == "cuda"
    return Timed(
        Figure("step", "s", seconds),
        torch.cuda.max_memory_allocated(device) if cuda else None,
        torch.cuda.max_memory_reserved(device) if cuda else None,
        losses[-1].item(),
    )


def utilisation(
    flops: dict[str, float], seconds: float, peaks: dict[str, float], *, fp8: bool
) -> list[dict[str, Any]]:
    """The share of each peak that was used, by each counting of operations.

    Args:
        flops: of one device in one step, by the name of the counting.
        seconds: of the step.
        peaks: FLOP/s of one device, by where they are from.
        fp8: whether products were in 8 bits, of which a part of the bf16 peak is no MFU.
    """
    name = "utilisation relative to the bf16 peak" if fp8 else "mfu"
    return [
        {
            "name": name,
            "counting": counting,
            "against": source,
            "peak_tflops": peak / 1e12,
            "value": count / seconds / peak,
        }
        for source, peak in peaks.items()
        for counting, count in flops.items()
    ]
