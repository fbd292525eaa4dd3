"""What a run computes with on this machine: found out once, the same on all ranks, and told."""

from dataclasses import dataclass, replace
from typing import cast

import torch

from llm_pretrain.config.schema import Attention, Library, TrainConfig
from llm_pretrain.engine.blank import loss_rows
from llm_pretrain.engine.fp8 import available
from llm_pretrain.engine.trial import Shape, choose
from llm_pretrain.world import World


@dataclass(frozen=True)
class Chosen:
    """One part of the computation."""

    part: str
    by: str
    """What does it."""
    why_not: dict[str, str]
    """What could have been faster, and why it was not taken."""

    def __str__(self) -> str:
        reasons = [f"{name}: {reason}" for name, reason in self.why_not.items()]
        return f"{self.part}: {self.by}" + (f" (not {'; '.join(reasons)})" if reasons else "")


@dataclass(frozen=True)
class Settled:
    """A config with names in place of every auto."""

    config: TrainConfig
    chosen: tuple[Chosen, ...]

    def to_dict(self) -> dict[str, str]:
        """What was chosen by part, and why nothing else."""
        return {c.part: str(c).removeprefix(f"{c.part}: ") for c in self.chosen}


def settle(config: TrainConfig, world: World) -> Settled:
    """Choose for every auto.

    Rank 0 tries on its device, which stands for all. Raises UserError on every rank when something
    that was asked for by name does not work here.
    """
    return world.on_main(lambda: _settle(config, world))


def _settle(config: TrainConfig, world: World) -> Settled:
    model, precision, data, layout = config.model, config.precision, config.data, world.layout
    dtype = torch.bfloat16 if precision.low else torch.float32
    cut = layout.tensor * layout.context
    shape = Shape(
        batch=data.micro_batch,
        length=data.sequence_length,
        heads=model.heads // cut,
        kv_heads=model.kv_heads // cut,
        head_dim=model.head_dim,
    )
    kernel = choose(model.attention, shape, world.device, dtype, masked=model.document_mask)
    model = replace(model, attention=cast(Attention, kernel.name))
    found = [Chosen("attention", kernel.name, kernel.why_not)]
    if precision.name == "fp8":
        products = available(config, world.device)
        precision = replace(precision, library=cast(Library, products.library))
        by = f"fp8 by {products.library}, {precision.recipe} scaling"
        found.append(Chosen("products", by, products.why_not))
    else:
        found.append(Chosen("products", precision.name, {}))
    rows = loss_rows(config)
    loss = "all logits at once" if rows is None else f"logits of {rows} positions at a time"
    found.append(Chosen("loss", loss, {}))
    found.append(Chosen("blocks", "compiled" if config.engine.compile else "not compiled", {}))
    return Settled(replace(config, model=model, precision=precision), tuple(found))


def settled(config: TrainConfig) -> bool:
    """Whether no auto is left."""
    fp8 = config.precision.name == "fp8"
    return config.model.attention != "auto" and not (fp8 and config.precision.library == "auto")
