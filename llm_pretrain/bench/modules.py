"""Attention, one block and the head, each alone, at the shapes that a rank has in a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.bench.figure import Figure, seconds_of
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.blank import blank_model
from llm_pretrain.engine.precision import autocast
from llm_pretrain.model.flops import forward_flops_per_token
from llm_pretrain.model.transformer import CausalAttention, Positions, Transformer, rope_tables
from llm_pretrain.world import World


@dataclass(frozen=True)
class Alone:
    """A module that ran by itself: forward, and forward and backward."""

    name: str
    forward: Figure
    """Seconds."""
    both: Figure
    """Seconds of the forward and the backward pass."""
    flops: float
    """Of the forward pass, with causal counting. Both passes count three times as many: what a
    kernel computes again is not counted."""

    @property
    def rates(self) -> tuple[Figure, Figure]:
        """TFLOP/s of the forward pass, and of both."""
        return (
            Figure.rate(
                f"{self.name}, forward", "TFLOP/s", self.flops / 1e12, self.forward.samples
            ),
            Figure.rate(
                f"{self.name}, forward and backward",
                "TFLOP/s",
                3 * self.flops / 1e12,
                self.both.samples,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "seconds": [figure.to_dict() for figure in (self.forward, self.both)],
            "rates": [figure.to_dict() for figure in self.rates],
        }


def attention_flops(model: ModelConfig, length: int) -> int:
    """Per token, of one block's forward pass, with causal counting."""
    with_it, without = (forward_flops_per_token(model, t, causal=True) for t in (length, -1))
    return (with_it - without) // model.layers


def modules(config: TrainConfig, world: World, say: Callable[[str], None]) -> Iterator[Alone]:
    """Measure each. `config` is settled: it names an attention kernel.

    Where matrices or sequences are cut over ranks only attention is measured, with a rank's heads.
    """
    cut = world.layout.part_size
    say("attention")
    yield _attention(config, world)
    if cut > 1:
        return
    model = _model(config, world)
    for name, measure in (("one block", _block), ("head with loss", _head)):
        say(name)
        yield measure(config, world, model)


def _model(config: TrainConfig, world: World) -> Transformer:
    """The model with a single block, as the engine would begin with it."""
    # A block that stays in bfloat16 is not the one of which there are most.
    precision = replace(config.precision, keep_first=0, keep_last=0)
    single = replace(config.model, layers=1)
    model = blank_model(replace(config, model=single, precision=precision), world.device)
    model.to_empty(device=world.device)
    model.initialize(config.run.seed)
    return model


def _attention(config: TrainConfig, world: World) -> Alone:
    """Attention with the heads of one rank."""
    part = world.layout.part_size
    heads, groups = config.model.heads // part, config.model.kv_heads // part
    mine = replace(config.model, heads=heads, kv_heads=groups, layers=1)
    with torch.device("meta"):
        model = Transformer(mine)
    batch, length = _batch(config, world)
    dtype = torch.float32 if config.precision.name == "fp32" else torch.bfloat16
    q, k, v = (
        torch.randn(
            batch, length, n, mine.head_dim, device=world.device, dtype=dtype, requires_grad=True
        )
        for n in (heads, groups, groups)
    )
    # Without a mask of documents also where a run has one: random tokens have no documents.
    mask = model.kernel.mask(None, length)
    mix = CausalAttention(model.kernel)
    flops = attention_flops(mine, length) * batch * length
    return _alone("attention", lambda: mix(q, k, v, mask), (q, k, v), flops, world)


def _block(config: TrainConfig, world: World, model: Transformer) -> Alone:
    batch, length = _batch(config, world)
    of = model.config
    x = torch.randn(batch, length, of.width, device=world.device, requires_grad=True)
    tables = rope_tables(length, of.head_dim, of.rope_theta, world.device)
    positions = Positions(*tables, model.kernel.mask(None, length))
    (block,) = model.blocks

    def forward() -> Tensor:
        with autocast(config.precision, world.device):
            y: Tensor = block(x, positions)
        return y

    without_head = forward_flops_per_token(of, length, causal=True) - _head_flops(of)
    inputs = (x, *block.parameters())
    return _alone("one block", forward, inputs, without_head * batch * length, world)


def _head(config: TrainConfig, world: World, model: Transformer) -> Alone:
    batch, length = _batch(config, world)
    of = model.config
    x = torch.randn(batch, length, of.width, device=world.device, requires_grad=True)
    targets = torch.randint(of.vocab_size, (batch, length), device=world.device)

    def forward() -> Tensor:
        with autocast(config.precision, world.device):
            return model.output(model.norm(x), targets, mean=True)

    inputs = (x, *model.norm.parameters(), *model.head.parameters())
    return _alone("head with loss", forward, inputs, _head_flops(of) * batch * length, world)


def _head_flops(model: ModelConfig) -> int:
    return 2 * model.width * model.vocab_size


def _batch(config: TrainConfig, world: World) -> tuple[int, int]:
    """Sequences of a pass, and their length."""
    data = config.data
    rows = data.global_batch // world.data_size
    return min(data.micro_batch, rows), data.sequence_length


def _alone(
    name: str, forward: Callable[[], Tensor], inputs: Sequence[Tensor], flops: float, world: World
) -> Alone:
    gradient = torch.randn_like(forward())

    def both() -> None:
        torch.autograd.grad(forward(), inputs, gradient)

    return Alone(
        name,
        Figure(f"{name}, forward", "s", seconds_of(forward, world.device)),
        Figure(f"{name}, forward and backward", "s", seconds_of(both, world.device)),
        flops,
    )
