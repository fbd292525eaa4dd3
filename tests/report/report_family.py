"""Run directories made up for the report's tests: real configs, losses from a formula."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig
from llm_pretrain.config.schema import (
    BranchSpec,
    EvalConfig,
    RunConfig,
    TrainConfig,
)
from llm_pretrain.duration import Duration, steps
from llm_pretrain.records import Parent, new_record
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import clock_of, schedule_of

TOKENS_PER_STEP = 8 * 256
RATE = 8000.0
STDERR = 0.02
Loss = Callable[[int], float]


def config(root: Path, name: str, total: int = 600, **cooldown: Any) -> TrainConfig:
    """A trunk like the demo's, or with `cooldown` a run trained from scratch."""
    return TrainConfig(
        run=RunConfig(name=name, root=str(root), dir=str(root / name)),
        optimizer=OptimizerConfig(lr=4e-3),
        schedule=ScheduleConfig(
            total=steps(total), warmup=steps(50), cooldown=CooldownConfig(**cooldown)
        ),
        data=DataConfig(global_batch=8, micro_batch=8, sequence_length=256),
        eval=EvalConfig(every=steps(25)),
    )


def cosine(root: Path, name: str, total: int) -> TrainConfig:
    """A cosine reference of the same length."""
    return config(root, name, total, length="rest", shape="cosine", floor=0.1)


def create(settings: TrainConfig, overrides: Iterable[str] = (), parent: Run | None = None) -> Run:
    """The directory of a run that has not started."""
    link, start = None, {}
    if parent is not None:
        link = Parent(parent.record.id, settings.past[-1].until)
        start = {"parent_dir": f"../{parent.path.name}", "parent_checkpoint": "0" * 64}
    total = schedule_of(settings).total
    record = new_record(
        settings.run.name, total=total, overrides=list(overrides), parent=link, **start
    )
    return Run.create(settings, record)


def branch(parent: Run, overrides: Iterable[str] = (), **spec: Any) -> list[Run]:
    """The directories of the branches that a spec asks for."""
    asked = BranchSpec(overrides=list(overrides), **spec)
    found = expand(Origin(parent.config, parent.record.id, parent.path), asked)
    return [create(b.config, b.overrides, parent) for b in found]


def ends(*horizons: int) -> dict[str, list[Duration]]:
    """A spec of cooldowns over the last fifth of each horizon."""
    return {"ends": [steps(h) for h in horizons]}


def measure(run: Run, loss: Loss, until: int | None = None, every: int = 25) -> Run:
    """Rows as the training loop writes them: training every 10 steps, evaluation every `every`."""
    noise = random.Random(run.record.name)
    total, clock = schedule_of(run.config).total, clock_of(run.config)
    until = total if until is None else until
    rows: list[dict[str, Any]] = []
    for step in range(run.begin + 1, until + 1):
        place = {"step": step, "tokens": clock.tokens_at(step)}
        if step % 10 == 0 or step in (run.begin + 1, total):
            rows.append(place | _training_row(run, step, loss(step) + noise.gauss(0, 0.05)))
        if step % every == 0 or step == total:
            rows.append(place | {"val_loss": loss(step), "val_stderr": STDERR})
    run.append_metrics(*rows)
    run.update(state="finished" if until == total else "interrupted", step=until)
    return run


def _training_row(run: Run, step: int, loss: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "lr": schedule_of(run.config).lr(step - 1),
        "grad_norm": 0.5,
        "tokens_per_second": RATE,
        "mfu": 0.3,
        "mfu_causal": 0.28,
    }


def steady_loss(step: int) -> float:
    """What a constant rate reaches, roughly as the demo does."""
    return 2.75 + 5.9 * (1 + step / 18) ** -0.55


def cooled_loss(run: Run) -> Loss:
    """What a branch reaches while its rate falls."""
    schedule, begin = schedule_of(run.config), run.begin
    full = schedule.lr(begin)

    def loss(step: int) -> float:
        fallen = 1 - schedule.lr(min(step, schedule.total - 1)) / full
        return steady_loss(step) - 0.17 * fallen

    return loss


def cosine_loss(total: int) -> Loss:
    """What cosine reaches: behind the trunk, then down to where a cooldown ends."""

    def loss(step: int) -> float:
        p = step / total
        return steady_loss(step) + 0.05 * math.sin(math.pi * p) - 0.16 * p**3

    return loss


def demo(root: Path, name: str = "demo", horizons: Iterable[int] = (300, 450, 600)) -> list[Run]:
    """A finished trunk with its cooldowns and a cosine reference of the longest horizon."""
    horizons = list(horizons)
    overrides = ["experiment=demo", f"run.name={name}"]
    trunk = measure(create(config(root, name, max(horizons)), overrides), steady_loss)
    branches = branch(trunk, **ends(*horizons))
    for run in branches:
        measure(run, cooled_loss(run))
    reference = create(
        cosine(root, f"{name}-cosine", max(horizons)),
        ["experiment=demo", "schedule=cosine", f"run.name={name}-cosine"],
    )
    measure(reference, cosine_loss(max(horizons)))
    return [trunk, *branches, reference]


def renamed(run: Run, name: str) -> Run:
    """The same directory under another name, as a record from elsewhere may have."""
    run.update(name=name)
    return run


def with_eval(settings: TrainConfig, sequences: int) -> TrainConfig:
    """The config with another number of held-out sequences."""
    return replace(settings, eval=replace(settings.eval, sequences=sequences))
