"""What ranks do with an update rule in the tests of engines, and what they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine import zero_config
from llm_pretrain.engine.base import Engine
from llm_pretrain.engine.build import build_engine
from llm_pretrain.world import World
from tests.engine.zero import Values, alone, take, whole
from tests.support import CONF

RULES: Mapping[str, tuple[str, ...]] = {
    "AdamC": ("optimizer=adamw", "optimizer.corrected_decay=true"),
    "schedule-free": ("optimizer=schedule_free", "optimizer.lr=3e-3"),
    "schedule-free+": (
        *("optimizer=schedule_free_plus", "optimizer.weight_decay=20", "optimizer.polyak_beta=0.9"),
        *("optimizer.anneal=10 steps", "optimizer.lr=0.2", "optimizer.grad_clip=0.5"),
    ),
    "AdEMAMix": ("optimizer=ademamix", "optimizer.slow_warmup=20 steps"),
    "Muon": ("optimizer=muon",),
    "AdamW, projected": ("optimizer=adamw", "optimizer.project=2 steps", "model.qk_norm=true"),
    "schedule-free, projected": (
        *("optimizer=schedule_free", "optimizer.project=1 steps", "optimizer.projected=blocks"),
        *("optimizer.scale_decay=0.1", "optimizer.lr=3e-3"),
    ),
}

STEPS = 20
MIDDLE = 12
SEQUENCES = 8
"""In an update."""


@dataclass(frozen=True)
class Course:
    """What an engine measured and held."""

    losses: list[float]
    """Over all ranks, of each update."""
    rates: list[dict[str, float]]
    evaluated: Tensor
    """Losses of four sequences in the end."""
    middle: Values
    """The state after `MIDDLE` updates."""
    final: Values


def configured(*overrides: str) -> TrainConfig:
    """The experiment that the tests write a corpus for, with random tokens in its place."""
    return compose(["experiment=tiny", "data.micro_batch=4", *overrides], CONF)


def batch(step: int, config: TrainConfig) -> Tensor:
    """The same on every rank: (SEQUENCES, T + 1). Each comes every fourth step, so that they are
    learned."""
    generator = torch.Generator().manual_seed(step % 4)
    size = (SEQUENCES, config.data.sequence_length + 1)
    return torch.randint(config.model.vocab_size, size, generator=generator)


def train(engine: Engine, world: World, config: TrainConfig, steps: range) -> list[float]:
    """Updates of two micro-batches each, with an evaluation here and there."""
    losses = []
    for step in steps:
        parts = batch(step, config).chunk(world.data_size)[world.data_rank].chunk(2)
        loss = torch.zeros(())
        for part in parts:
            loss += engine.forward_backward(part, weight=1 / 2, last=part is parts[-1])
        engine.step(config.optimizer.lr)
        if step % 7 == 3:
            engine.evaluate(parts[0])
        losses.append(world.sum(loss).item() / world.data_size)
    return losses


def course(world: World, config: TrainConfig) -> Course:
    """A run without an interruption."""
    engine = build_engine(config, world)
    losses, rates = [], []
    for step in range(STEPS):
        losses += train(engine, world, config, range(step, step + 1))
        rates.append({name: rate.item() for name, rate in engine.rates().items()})
        if step == MIDDLE - 1:
            middle = whole(engine)
    evaluated = engine.evaluate(batch(99, config)[:4])
    return Course(losses, rates, evaluated, middle, whole(engine))


def goes_on(world: World, config: TrainConfig, middle: Values) -> Course:
    """The rest of a run, by an engine that has done something else before."""
    engine = build_engine(config, world)
    train(engine, world, config, range(50, 53))
    engine.evaluate(batch(99, config)[:4])
    take(engine, middle)
    losses = train(engine, world, config, range(MIDDLE, STEPS))
    evaluated = engine.evaluate(batch(99, config)[:4])
    return Course(losses, [], evaluated, middle, whole(engine))


def resumed_too(world: World, config: TrainConfig) -> tuple[Course, Course]:
    """The whole run, and its end resumed from its middle."""
    first = course(world, config)
    return first, goes_on(world, config, first.middle)


def all_resumed_too(world: World, configs: Sequence[TrainConfig]) -> list[tuple[Course, Course]]:
    """The same for one run after the other."""
    return [resumed_too(world, config) for config in configs]


def in_small_buckets(world: World, config: TrainConfig) -> tuple[Course, Course]:
    """The same where stage 3 updates many parts of a rank's parameters one after the other."""
    before, zero_config.BUCKET = zero_config.BUCKET, 1000
    try:
        return resumed_too(world, config)
    finally:
        zero_config.BUCKET = before


def plain(config: TrainConfig) -> Course:
    """The run of one process."""
    return course(alone(), config)


def losses_of(world: World, configs: Sequence[TrainConfig]) -> list[list[float]]:
    """Of each update of a run, for one run after the other."""
    return [train(build_engine(c, world), world, c, range(STEPS)) for c in configs]
