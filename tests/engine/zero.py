"""What ranks do with an engine in the tests of ZeRO, and the plain module to compare it with."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schema import ModelConfig, PrecisionConfig, TrainConfig
from llm_pretrain.engine import zero_config
from llm_pretrain.engine.base import Engine, State
from llm_pretrain.engine.build import build_engine
from llm_pretrain.world import World

Values = dict[str, Tensor]
STEPS = 6
SMALL = ModelConfig(vocab_size=96, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48)
ODD = ModelConfig(
    vocab_size=97,
    width=31,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=2,
    ffn=37,
    qk_norm=True,
    tied_embeddings=False,
)
"""Nothing divides by the number of ranks; norms of the heads have fewer elements than ranks."""


def configured(
    model: ModelConfig = SMALL, clip: float = 0.2, precision: Any = "fp32", **engine: Any
) -> TrainConfig:
    """A run of six sequences a rank, whose gradients are clipped in each step."""
    return TrainConfig(
        model=model,
        data=DataConfig(global_batch=12, micro_batch=2, sequence_length=16),
        optimizer=OptimizerConfig(lr=1e-2, grad_clip=clip),
        precision=PrecisionConfig(name=precision),
        engine=EngineConfig(**engine),
    )


def zero(stage: int, offload: str = "none", **more: Any) -> TrainConfig:
    """The same run under DeepSpeed."""
    return configured(name="deepspeed", zero_stage=stage, offload=offload, **more)


def alone() -> World:
    """The plain module in this process."""
    return World(0, Layout(), torch.device("cpu"))


def batch(step: int, config: TrainConfig) -> Tensor:
    """The same on every rank: (12, 17)."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, config.model.vocab_size, (12, 17), generator=generator)


def update(engine: Engine, world: World, tokens: Tensor, lr: float) -> tuple[float, float]:
    """One step in micro-batches of 2; this rank's loss and the norm."""
    passes = tokens.chunk(world.size)[world.rank].split(2)
    loss = torch.zeros(())
    for i, part in enumerate(passes):
        last = i == len(passes) - 1
        loss += engine.forward_backward(part, weight=1 / len(passes), last=last)
    return loss.item(), engine.step(lr).item()


def train(
    engine: Engine, world: World, config: TrainConfig, steps: range, evaluate: bool = True
) -> list[tuple[float, float]]:
    """Losses and norms; in between the loss of a few sequences, which must change nothing."""
    seen = []
    for step in steps:
        if evaluate:
            engine.evaluate(batch(100, config)[:3])
        seen.append(update(engine, world, batch(step, config), lr=1e-2 / (1 + step)))
    return seen


def named(state: State, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a state by their path."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from named(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def whole(engine: Engine) -> Values:
    """The engine's state, gathered."""
    gathered = {}
    for name, leaf in named(engine.state()):
        value = leaf if isinstance(leaf, Tensor) else leaf()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        gathered[name] = value.detach().clone()
    return gathered


def take(engine: Engine, values: Values) -> None:
    """Make the engine load `values`, each rank only its part."""

    @torch.no_grad()
    def fill(state: State) -> None:
        # Of a rule that averages, the parameters that are read out follow from the others.
        averages = any(name.endswith("/point") for name in values)
        asked = [n for n in values if not (averages and n.startswith("model/"))]
        assert [name for name, _ in named(state)] == asked
        for name, buffer in named(state):
            value = values[name]
            assert buffer.shape == value.shape and buffer.dtype == value.dtype, name
            if isinstance(buffer, DTensor):
                mesh, placements = buffer.device_mesh, buffer.placements
                part = distribute_tensor(value, mesh, placements, src_data_rank=None)
                buffer.to_local().copy_(part.to_local())
            else:
                buffer.copy_(value)

    engine.load(fill)


def reference(config: TrainConfig, steps: range = range(STEPS)) -> tuple[list[Any], Values]:
    """What the plain module measures and holds in the end."""
    engine = build_engine(config, alone())
    return train(engine, alone(), config, steps), whole(engine)


def uninterrupted_and_resumed(world: World, config: TrainConfig) -> Any:
    """Numbers and state of a whole run, and of one resumed in its middle by an engine in use."""
    engine = build_engine(config, world)
    seen = train(engine, world, config, range(STEPS // 2))
    middle = whole(engine)
    seen += train(engine, world, config, range(STEPS // 2, STEPS))
    again = build_engine(config, world)
    train(again, world, config, range(1))
    take(again, middle)
    resumed = train(again, world, config, range(STEPS // 2, STEPS))
    return seen, whole(engine), resumed, whole(again)


def with_small_buckets(world: World, config: TrainConfig) -> Any:
    """The same in buckets that are smaller than the model and some of its tensors."""
    before, zero_config.BUCKET = zero_config.BUCKET, 1000
    try:
        return uninterrupted_and_resumed(world, config)
    finally:
        zero_config.BUCKET = before


def loaded_and_trained(world: World, config: TrainConfig, values: Values) -> Any:
    """The state after loading `values`, the numbers of two steps, the state after them."""
    engine = build_engine(config, world)
    take(engine, values)
    return whole(engine), train(engine, world, config, range(2)), whole(engine)


def initial(world: World, config: TrainConfig) -> Values:
    """The state before any step."""
    return whole(build_engine(config, world))


def numbers(world: World, config: TrainConfig, evaluate: bool = True) -> Any:
    """Numbers of a run, and its state in the end."""
    engine = build_engine(config, world)
    return train(engine, world, config, range(STEPS), evaluate), whole(engine)


def evaluations(world: World, config: TrainConfig) -> list[Tensor]:
    """Losses of the same sequences before the first step and after it."""
    engine = build_engine(config, world)
    before = engine.evaluate(batch(7, config))
    train(engine, world, config, range(1))
    return [before, engine.evaluate(batch(7, config))]


def after_a_broken_step(world: World, config: TrainConfig) -> list[float]:
    """Norms of a step whose gradients are no numbers, of a good one, and of one after a load."""
    engine = build_engine(config, world)
    values = whole(engine)
    engine.forward_backward(batch(0, config), weight=math.nan, last=True)
    norms = [engine.step(1e-3).item(), update(engine, world, batch(0, config), 1e-3)[1]]
    take(engine, values)
    return [*norms, update(engine, world, batch(0, config), 1e-3)[1]]


def recomputed(world: World, config: TrainConfig) -> tuple[int, Any]:
    """Forward passes of the first attention in a step of three micro-batches, and the numbers."""
    engine = build_engine(config, world)
    calls: list[None] = []
    _model(engine).blocks[0].attention.register_forward_pre_hook(lambda *_: calls.append(None))
    seen = train(engine, world, config, range(1), evaluate=False)
    return len(calls), seen + train(engine, world, config, range(1, STEPS))


def _model(engine: Engine) -> Any:
    (model,) = (m for m in engine._engine.modules() if hasattr(m, "blocks"))  # type: ignore[attr-defined]
    return model


def footprint(world: World, config: TrainConfig) -> tuple[int, int, list[Any]]:
    """Most elements gathered in forward or backward, elements in all, weights kept for backward."""
    engine = build_engine(config, world)
    model = _model(engine)
    parameters = list(model.parameters())
    shapes = {tuple(p.ds_shape) for p in parameters if len(p.ds_shape) == 2}
    shapes |= {shape[::-1] for shape in shapes}
    gathered: list[int] = []
    kept: list[Any] = []

    def count(*_: object) -> None:
        gathered.append(sum(p.numel() for p in parameters))

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tuple(tensor.shape) in shapes:
            kept.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    for block in model.blocks:
        block.mlp.down.register_forward_pre_hook(count)
        block.mlp.down.register_full_backward_pre_hook(count)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train(engine, world, config, range(3), evaluate=False)
    return max(gathered), sum(p.ds_numel for p in parameters), kept
