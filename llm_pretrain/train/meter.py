"""Tokens per second and MFU between two rows of metrics, without the pauses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.train.hardware import peak
from llm_pretrain.world import World


class Meter:
    """Counts tokens and training seconds; evaluation and saving pause it."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        dtype = torch.bfloat16 if config.precision.low else torch.float32
        # Ranks that share cores would slow each other's measurement.
        self.peak = world.on_main(lambda: peak(world.device, dtype))
        length = config.data.sequence_length
        self._flops = flops_per_token(config.model, length, causal=False)
        self._causal_flops = flops_per_token(config.model, length, causal=True)
        self._world = world
        self._tokens = 0
        self._began = 0.0

    def start(self) -> None:
        """Begin a stretch."""
        self._tokens = 0
        self._began = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Add the tokens of one update, over all ranks."""
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Rates since the last reading; then a new stretch begins.

        `mfu` counts attention as a full square, as most published figures do; `mfu_causal` counts
        the half that a causal mask needs. With fp8 too, both are relative to the peak of bfloat16,
        so that what 8 bits gain is seen. On a GPU also `peak_memory_gib`, the most that rank 0
        has had allocated since the run began.
        """
        rate = self._tokens / (time.perf_counter() - self._began)
        peak_flops = self.peak.flops * self._world.size
        self.start()
        return {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self._flops / peak_flops, 4),
            "mfu_causal": round(rate * self._causal_flops / peak_flops, 4),
            **_peak_memory(self._world.device),
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        stopped = time.perf_counter()
        yield
        self._began += time.perf_counter() - stopped


def _peak_memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)}
