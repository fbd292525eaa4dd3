"""What a change costs in loss: two runs with the same seed and data, and their paired difference.

By default of 1B in bf16 and in fp8, on the Python standard library's source, which every machine
has. The engine, the loader and the schedule are those of `llm-pretrain train`; nothing is saved.
Held-out loss: both models on the same sequences, so the error of the mean difference is of the
differences, which is far smaller than that of either loss. Training loss: the difference of the
last third of the steps, in blocks whose means are taken as independent. Neither says how much two
seeds would differ.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import free_memory
from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import prepare
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.choices import settle
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.world import join

_BLOCK = 10
"""Steps whose mean difference is one observation."""
_WARM_UP = 10
"""Steps without a share in the rate."""
_DEFAULTS = (
    *("experiment=demo", "plan=[]", "precision=bf16", "optimizer.lr=3e-4", "model.vocab_size=8192"),
    *("data.sequence_length=2048", "data.global_batch=8", "data.micro_batch=8"),
    *("data.tokenizer.vocab_size=8192", "eval.sequences=256"),
)
_QUICK = (
    *("data.sources.stdlib.limit=80", "data.validation_fraction=0.2", "eval.sequences=16"),
    *("data.tokenizer.vocab_size=400", "data.sequence_length=32", "model.vocab_size=512"),
)


@dataclass(frozen=True)
class Trained:
    """One run."""

    losses: list[float]
    """Of each step, in nats per token."""
    held_out: list[float]
    """Of each held-out sequence, at the end."""
    tokens_per_second: float
    computes: dict[str, str]


@dataclass(frozen=True)
class Gap:
    """A mean difference, the other minus the first, and its standard error, in nats per token."""

    mean: float
    stderr: float
    count: int
    """Observations."""


def paired(first: Sequence[float], other: Sequence[float]) -> Gap:
    """Of observations that belong together pair by pair; at least two pairs."""
    differences = [b - a for a, b in zip(first, other, strict=True)]
    stderr = statistics.stdev(differences) / math.sqrt(len(differences))
    return Gap(statistics.fmean(differences), stderr, len(differences))


def blocks(values: Sequence[float], size: int) -> list[float]:
    """Means of consecutive blocks; what is left at the beginning is dropped."""
    kept = values[len(values) % size :]
    return [statistics.fmean(kept[i : i + size]) for i in range(0, len(kept), size)]


def train(config: TrainConfig) -> Trained:
    """Train for the whole schedule, then evaluate."""
    prepared = prepare(config.data)
    loader, schedule = Loader(config, prepared), schedule_of(config)
    micro = config.data.micro_batch
    with join(config.engine) as world:
        settled = settle(config, world)
        end = prepared.tokenizer.end_of_text_id
        engine = build_engine(settled.config, world, end_of_text=end)
        losses: list[torch.Tensor] = []
        began = time.perf_counter()
        for step in range(schedule.total):
            if step == _WARM_UP:
                losses[-1].item()  # waits for the device
                began = time.perf_counter()
            rows = torch.from_numpy(loader.batch(step))
            rows = rows.pin_memory() if world.device.type == "cuda" else rows
            passes = torch.split(rows, micro)
            total = torch.zeros((), device=world.device)
            for i, tokens in enumerate(passes):
                last = i == len(passes) - 1
                total += engine.forward_backward(tokens, weight=1 / len(passes), last=last)
            engine.step(schedule.lr(step))
            losses.append(total)
        values = torch.stack(losses).tolist()
        seconds = time.perf_counter() - began
        counted = max(1, schedule.total - _WARM_UP) * config.data.global_batch
        count = loader.validation_sequences(config.eval.sequences)
        held_out = [
            loss
            for first in range(0, count - count % micro, micro)
            for loss in engine.evaluate(
                torch.from_numpy(loader.validation_batch(first, micro))
            ).tolist()
        ]
    rate = counted * config.data.sequence_length / seconds
    return Trained(values, held_out, rate, settled.to_dict())


def compare(overrides: Sequence[str], changed: Sequence[str]) -> dict[str, Any]:
    """Train with `overrides`, and with `changed` beside them; the gap, for JSON."""
    first = train(compose(overrides))
    free_memory()
    other = train(compose([*overrides, *changed]))
    third = len(first.losses) // 3
    size = min(_BLOCK, max(1, third // 2))
    late = [blocks(run.losses[-third:], size) for run in (first, other)]
    return {
        "steps": len(first.losses),
        "changed": list(changed),
        "held_out": vars(paired(first.held_out, other.held_out)),
        "training": vars(paired(*late)),
        "block": size,
        "runs": [
            {
                "loss": statistics.fmean(run.losses[-third:]),
                "held_out": statistics.fmean(run.held_out),
                "tokens_per_second": run.tokens_per_second,
                "computes": run.computes,
                "losses": [round(loss, 5) for loss in run.losses],
            }
            for run in (first, other)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    options = argparse.ArgumentParser("python -m benchmarks.fp8_gap", description=__doc__)
    options.add_argument("--quick", action="store_true", help="little text: try the code")
    options.add_argument(
        "--steps", type=int, default=300, help="of each run (default: %(default)s)"
    )
    options.add_argument(
        "--other", action="append", metavar="KEY=VALUE", help="what the other run has differently"
    )
    options.add_argument("--out", type=Path, help="file for the JSON")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of both, as for train")
    given = options.parse_args(arguments)
    changed = given.other or ["precision.name=fp8"]
    length = [f"schedule.total={given.steps} steps", f"schedule.warmup={given.steps // 10} steps"]
    quick = _QUICK if given.quick else ()
    keyed: dict[str, str] = {}
    for override in (*_DEFAULTS, *quick, *length, *given.overrides):
        keyed[override.partition("=")[0]] = override  # the last one counts
    result = compare(list(keyed.values()), changed)
    gap = result["held_out"]
    print(f"held-out difference {gap['mean']:+.5f} ± {gap['stderr']:.5f} nats per token")
    if given.out:
        given.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
