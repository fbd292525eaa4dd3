"""The layouts and engines that must all train the same model, and how to train one of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.ranks.commands import Zygote
from tests.support import CONF, metrics, tensors

STEPS = 12
BATCH = 8
KEYS = ("loss", "grad_norm", "val_loss")

STATE_BOUND = 3e-5
"""Parameters and moments after twelve steps in float32, relative to a tensor's largest value.
Measured: 5e-6."""


@dataclass(frozen=True)
class Layout:
    """A number of ranks, and the fields of `engine` that say what they do."""

    ranks: int
    engine: tuple[str, ...]
    parts: int = 1
    """Ranks that work on the same sequences."""

    @property
    def arguments(self) -> list[str]:
        """Overrides that choose it, with two micro-batches a rank."""
        micro = BATCH * self.parts // self.ranks // 2
        return [*self.engine, f"data.micro_batch={micro}"]

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains it."""
        return self.engine[0] == "engine=deepspeed"


def fsdp(ranks: int, *fields: str, parts: int = 1) -> Layout:
    """A layout of FSDP2, with fields such as 'tensor=2'."""
    return Layout(ranks, ("engine=fsdp", *(f"engine.{field}" for field in fields)), parts)


def zero(stage: int, ranks: int = 2) -> Layout:
    """A stage of DeepSpeed's ZeRO."""
    return Layout(ranks, ("engine=deepspeed", f"engine.zero_stage={stage}"))


LAYOUTS = {
    "one process": fsdp(1),
    "FSDP 2": fsdp(2),
    "FSDP 4": fsdp(4),
    "HSDP 2x2": fsdp(4, "replicate=2", "shard=2"),
    "copies 2": fsdp(2, "shard=1"),
    "tensor 2": fsdp(2, "tensor=2", parts=2),
    "tensor 2, FSDP 2": fsdp(4, "tensor=2", parts=2),
    "context 2": fsdp(2, "context=2", parts=2),
    "context 2, tensor 2": fsdp(4, "context=2", "tensor=2", parts=4),
    "ZeRO-1 2": zero(1),
    "ZeRO-2 2": zero(2),
    "ZeRO-3 2": zero(3),
}

PAIRS = {
    "copies 2, tensor 2": fsdp(4, "shard=1", "tensor=2", parts=2),
    "copies 2, context 2": fsdp(4, "shard=1", "context=2", parts=2),
    "context 2, FSDP 2": fsdp(4, "context=2", parts=2),
}
"""Two ways to cut at once, where the README's table has no row for them."""


@dataclass(frozen=True)
class Fleet:
    """Trains experiments of tests/conf under any layout, each distinct run once."""

    place: Path
    cache: Path
    zygote: Callable[[Layout], Zygote]
    runs: dict[tuple[int, tuple[str, ...]], Path] = field(default_factory=dict)

    def train(self, layout: Layout, *overrides: str, experiment: str = "proof") -> Path:
        """The directory of the finished run; a second call with the same arguments is free."""
        asked = (f"experiment={experiment}", *layout.arguments, *overrides)
        path = self.runs.get((layout.ranks, asked))
        if path is None:
            # Not the number of `runs`: one that failed has left its directory.
            path = self.place / f"run{len(list(self.place.glob('run*')))}"
            self.command(layout, f"run.dir={path}", *asked, f"data.cache={self.cache}")
            self.runs[layout.ranks, asked] = path
        return path

    def command(self, layout: Layout, *arguments: str) -> None:
        """`llm-pretrain train ARGUMENTS` on the ranks of a layout; all must succeed."""
        self.zygote(layout).train(layout.ranks, f"--config-dir={CONF}", *arguments)


def differences(a: Path, b: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and relative difference of every loss and norm that two runs measured."""
    rows, others = metrics(a), metrics(b)
    assert [(r["step"], r.keys()) for r in rows] == [(r["step"], r.keys()) for r in others]
    for row, other in zip(rows, others, strict=True):
        for key in KEYS:
            if key in row:
                yield row["step"], key, abs(row[key] / other[key] - 1)


def fp32_bound(step: int) -> float:
    """1e-6 after the first step, 1e-5 after the last: training amplifies what differs."""
    return 1e-6 * math.pow(10, (step - 1) / (STEPS - 1))


def assert_close_states(a: Path, b: Path, step: int, bound: float) -> None:
    """The checkpoints of two runs hold the same parameters and moments, to `bound` of the largest.

    Names, shapes and types are equal; only the generator states belong to ranks.
    """
    state, other = (dict(_leaves({**tensors(p, step), "rng": {}})) for p in (a, b))
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert (value.shape, value.dtype) == (other[name].shape, other[name].dtype), name
        error = (value - other[name]).abs().max().item()
        assert error <= bound * other[name].abs().max().item(), f"{name}: {error}"


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(runs: dict[str, Path]) -> str:
    """Markdown: what each layout measured, and its largest difference from the first one."""
    lines = [
        "| layout | loss 1 | loss 12 | norm 12 | validation | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    reference = next(iter(runs.values()))
    for name, run in runs.items():
        by_step = {r["step"]: r for r in metrics(run) if "loss" in r}
        first, last, final = by_step[1], by_step[STEPS], metrics(run)[-1]
        values = (first["loss"], last["loss"], last["grad_norm"], final["val_loss"])
        largest = max(d for _, _, d in differences(run, reference))
        cells = " | ".join(f"{v:.6f}" for v in values)
        lines.append(f"| {name} | {cells} | {largest:.1e} |")
    return "\n".join(lines)
