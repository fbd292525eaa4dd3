"""Reads the training logs of Hägele et al. 2024 and Schaipp et al. 2025, with their pitfalls.

The file is a JSON list of runs, extracted from github.com/fabian-sp/lr-scheduling. What one must
know to read it right is here, and nowhere else.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.predict.history import Array, History

WEIGHT_DECAY = 0.1
"""Of all runs."""
OFFSET = (0.0355, 0.001)
"""By how much the losses of `val` (32 batches) are below those on the whole validation set at the
end of a trunk, mean and deviation between runs, in nats."""
_WORKERS = 2
"""Each run used two GPUs; batch_size counts the sequences of one."""
_FIELDS = ("name", "layers", "width", "peak_lr", "scheduler", "steps", "warmup_steps", "val")
DIVERGED = 6.0
"""Nats; a final loss above it is of a run that failed."""

Kind = Literal["trunk", "cooldown", "cosine"]


@dataclass(frozen=True)
class Curve:
    """Losses in nats after given numbers of updates, ascending and each step once."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]

    def at(self, step: int) -> float | None:
        """The loss at `step`, or None."""
        return dict(zip(self.steps, self.losses, strict=True)).get(step)


@dataclass(frozen=True, eq=False)
class PaperRun:
    """One run, in terms that do not need its authors' habits."""

    name: str
    layers: int
    width: int
    peak: float
    """Peak learning rate."""
    kind: Kind
    """trunk: constant to the end."""
    shape: str
    """Of the decay: linear or 1-sqrt for a cooldown, cosine, or "" for a trunk."""
    total: int
    """Updates."""
    warmup: int
    cooldown: int
    """Updates of the cooldown, 0 for the other kinds."""
    typed: bool
    """Whether the record has a decay type, as all but the oldest do."""
    floor: float
    """Share of the peak at which the rate ends."""
    tokens_per_step: int
    val: Curve
    """32-batch validation losses; those of a cooldown begin where its run was resumed."""
    train: Curve
    finals: Curve
    """Losses on the whole validation set; a trunk or a cosine has some along the way."""
    averaged: Curve
    """Losses of the mean of the weights of the last 500 updates."""

    @property
    def size(self) -> tuple[int, int]:
        """Layers and width, which tell the models apart."""
        return self.layers, self.width

    @property
    def series(self) -> tuple[object, ...]:
        """Equal for a trunk and the cooldowns and cosines that its authors set beside it.

        At 124M there are two series, of which the later one gives its decay type; at 210M two,
        of which one has "norm" in its names.
        """
        return (*self.size, self.typed if self.size == (12, 768) else "norm" in self.name)

    @property
    def final(self) -> float | None:
        """Loss on the whole validation set after the last update, where it was measured."""
        return self.finals.at(self.total)

    @property
    def diverged(self) -> bool:
        """Whether training failed."""
        return self.final is not None and self.final > DIVERGED

    @cached_property
    def history(self) -> History:
        """The learning rate of every update."""
        return History(self.peak * multipliers(self))


def load(path: Path) -> list[PaperRun]:
    """The runs in `path`, in the order of the file.

    Raises UserError when it cannot be read or a run lacks what is needed.
    """
    try:
        records = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error})") from error
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: needs a list of runs, as paper_runs/runs.json has")
    return [_run(record, f"{path}: run {i}") for i, record in enumerate(records)]


def multipliers(run: PaperRun) -> Array:
    """The multiplier of every update exactly as the authors' code has it: shape (total,).

    WSD: linear from 0.01 to 1 at update W, and the first update of the cooldown is still at 1.
    Cosine (PyTorch's OneCycleLR): the warmup is cosine shaped too, and the peak is at update W - 1.
    """
    t = np.arange(run.total, dtype=np.float64)
    if run.kind == "cosine":
        top = run.warmup - 1
        up = 0.01 + 0.99 * (1 - np.cos(np.pi * t / top)) / 2
        turn = np.cos(np.pi * (t - top) / (run.total - 1 - top))
        down = run.floor + (1 - run.floor) / 2 * (1 + turn)
        return np.where(t <= top, up, down)
    warm = t / run.warmup + (1 - t / run.warmup) / 100 if run.warmup else np.ones_like(t)
    begin = run.total - run.cooldown
    done = np.clip(t - begin, 0, None) / max(run.cooldown, 1)
    left = 1 - (np.sqrt(done) if run.shape == "1-sqrt" else done)
    return np.where(t < run.warmup, warm, run.floor + (1 - run.floor) * left)


def _run(record: Any, where: str) -> PaperRun:
    if not isinstance(record, dict):
        raise UserError(f"{where}: needs an object with the fields {', '.join(_FIELDS)}, ...")
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        raise UserError(f"{where}: has no '{missing[0]}'")
    scheduler, total = record["scheduler"], int(record["steps"])
    if scheduler not in ("wsd", "cos"):
        raise UserError(f"{where}: scheduler '{scheduler}'; known are wsd and cos")
    cooldown = 0 if scheduler == "cos" else int((record.get("cooldown_fraction") or 0) * total)
    kind: Kind = "cosine" if scheduler == "cos" else "cooldown" if cooldown else "trunk"
    return PaperRun(
        name=record["name"],
        layers=record["layers"],
        width=record["width"],
        peak=record["peak_lr"],
        kind=kind,
        shape=_shape(kind, record.get("decay_type")),
        total=total,
        warmup=int(record["warmup_steps"]),
        cooldown=cooldown,
        typed=record.get("decay_type") is not None,
        # The flag for another end of the cosine is not in the record, only in the name.
        floor=0.1 if kind == "cosine" and not record["name"].startswith("cos-zero") else 0.0,
        tokens_per_step=_tokens(record),
        val=_curve(record["val"], where),
        train=_curve(record.get("train"), where),
        finals=_curve(record.get("final_val"), where),
        averaged=_curve((record.get("weight_average") or {}).get("val_loss_wa"), where),
    )


def _shape(kind: Kind, decay_type: str | None) -> str:
    """What `decay_type` says; it means nothing for a cosine, and came after the first cooldowns."""
    if kind != "cooldown":
        return "cosine" if kind == "cosine" else ""
    return "1-sqrt" if decay_type == "sqrt" else "linear"


def _tokens(record: dict[str, Any]) -> int:
    parts = (record.get(name, 0) for name in ("batch_size", "acc_steps", "seq_len"))
    return int(np.prod([int(part) for part in parts])) * _WORKERS


def _curve(data: Any, where: str) -> Curve:
    """The curve in order; a step that a restart logged again counts once, by its mean."""
    if not data:
        return Curve((), ())
    steps, losses = data.get("step", []), data.get("loss", [])
    if len(steps) != len(losses):
        raise UserError(f"{where}: a curve of {len(steps)} steps but {len(losses)} losses")
    seen: dict[int, list[float]] = {}
    for step, loss in zip(steps, losses, strict=True):
        if loss is not None and np.isfinite(loss):
            seen.setdefault(int(step), []).append(float(loss))
    order = sorted(seen)
    return Curve(tuple(order), tuple(float(np.mean(seen[step])) for step in order))
