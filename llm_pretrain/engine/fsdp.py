"""FSDP2 over all ranks; with a single process, the plain module."""

import contextlib
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.adamw import build_adamw
from llm_pretrain.world import World


class FsdpEngine:
    """Parameters, gradients and moments in float32, sharded over the ranks of `world`."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self._world = world
        self._bf16 = config.precision.name == "bf16"
        # Nothing here draws from the global generators, but what they hold is part of a checkpoint.
        torch.manual_seed(config.run.seed)
        with torch.device("meta"):
            model = Transformer(config.model)
        model.to_empty(device=world.device)
        model.initialize(config.run.seed)
        if config.engine.compile:
            for block in model.blocks:
                block.compile()
        if world.size > 1:
            for block in model.blocks:
                fully_shard(block)
            fully_shard(model)
        self.model = model
        self.optimizer = build_adamw(model, config.optimizer)

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        """See Engine."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        loss = self._losses(tokens).mean() * weight
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self, lr: float, max_norm: float) -> torch.Tensor:
        """See Engine."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def evaluate(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Engine."""
        losses = self._losses(tokens).mean(dim=1)
        if isinstance(self.model, FSDPModule):
            # The root's own parameters stay gathered until a backward pass, which never comes
            # here; the optimizer knows only the sharded ones.
            self.model.reshard()
        return losses

    def state(self) -> dict[str, Any]:
        """See Engine."""
        named = dict(self.model.named_parameters())
        return {
            "model": {name: parameter.detach() for name, parameter in named.items()},
            "optimizer": {name: dict(self.optimizer.state[p]) for name, p in named.items()},
        }

    def _losses(self, tokens: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            losses: torch.Tensor = self.model(tokens[:, :-1], tokens[:, 1:])  # (B, T)
        return losses

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._bf16:
            return contextlib.nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)
