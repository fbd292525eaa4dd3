"""FSDP2 and tensor parallelism on a mesh of ranks; with a single process, the plain module."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine import fp8
from llm_pretrain.engine.base import State
from llm_pretrain.engine.blank import blank_model
from llm_pretrain.engine.inputs import Inputs
from llm_pretrain.engine.parallel import context_mesh, distribute
from llm_pretrain.engine.parts import assign
from llm_pretrain.engine.precision import autocast
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.adamw import build_adamw, make_state
from llm_pretrain.world import World


class FsdpEngine:
    """Parameters, gradients and moments in float32, cut over the ranks as the layout says."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        *,
        fresh: bool = True,
        end_of_text: int | None = None,
    ) -> None:
        """`fresh` and `end_of_text`: as for `build_engine`."""
        self._config, self._world, self._end_of_text = config, world, end_of_text
        # Nothing here draws from the global generators, but what they hold is part of a checkpoint.
        torch.manual_seed(config.run.seed)
        layout = world.layout
        self._context = context_mesh(layout, world.device.type) if layout.context > 1 else None
        self.model = _place(config, world, self._context)
        self._fill(fresh)
        # By these names and no others: between a pass and its end FSDP may show gathered ones.
        self._parameters = dict(self.model.named_parameters())
        self.optimizer = build_adamw(self.model, config.optimizer)
        make_state(self.optimizer)

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        """See Engine."""
        if isinstance(self.model, FSDPModule):
            whole = self._config.engine.accumulate == "whole"
            self.model.set_requires_gradient_sync(last or not whole)
            self.model.set_requires_all_reduce(last)
        with self._sharded_loss():
            loss = _local(self._losses(tokens, mean=True) * weight)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self, lr: float) -> torch.Tensor:
        """See Engine."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = _local(_total_norm([p.grad for p in parameters if p.grad is not None]))
        if self._config.optimizer.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._config.optimizer.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def evaluate(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Engine."""
        with self._sharded_loss(), fp8.unchanged(self.model, self._config.precision):
            losses = _local(self._losses(tokens).mean(dim=1))
        if self._context is not None:
            dist.all_reduce(losses, group=self._context.get_group())
            losses /= self._context.size()
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                # What a forward pass leaves gathered stays so until a backward pass, which never
                # comes here; the optimizer knows only the sharded parameters.
                module.reshard()
        return losses

    def kurtosis(self) -> torch.Tensor | None:
        """See Engine."""
        return self.model.kurtosis

    def state(self) -> State:
        """See Engine."""
        moments = dict(self.optimizer.state)
        return {
            "model": {name: p.detach() for name, p in self._parameters.items()},
            "optimizer": {name: dict(moments[p]) for name, p in self._parameters.items()},
            **fp8.state(self.model, self._config.precision),
        }

    def load(self, fill: Callable[[State], None]) -> None:
        """See Engine."""
        fp8.loading(self.model, self._config.precision, fill)(self.state())

    def _fill(self, fresh: bool) -> None:
        """Give the parameters memory and, if `fresh`, initial values, one tensor at a time."""
        offloaded = self._config.engine.offload == "all"
        self.model.to_empty(device=torch.device("cpu") if offloaded else self._world.device)
        if fresh:
            parameters = dict(self.model.named_parameters())
            for name, value in self.model.initial_values(self._config.run.seed):
                assign(parameters[name], value)

    def _losses(self, tokens: torch.Tensor, *, mean: bool = False) -> torch.Tensor:
        """Of this rank's part of each sequence: (B, T + 1) -> (B, T / context), or their mean."""
        inputs = Inputs.of(tokens, self._end_of_text, self._world)
        with autocast(self._config.precision, self._world.device):
            losses: torch.Tensor = self.model(*inputs, mean=mean)
        return losses

    def _sharded_loss(self) -> contextlib.AbstractContextManager[Any]:
        """Tensor-parallel ranks hold a part of the vocabulary's logits each, never all."""
        return loss_parallel() if self._world.layout.tensor > 1 else contextlib.nullcontext()


def _place(config: TrainConfig, world: World, context: DeviceMesh | None) -> Transformer:
    """The model on the meta device, where it takes no memory, cut to this rank's part."""
    model = blank_model(config, world.device)
    if world.io_group is not None:
        distribute(model, config, world, context)
    return model


def _total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Root of the sum of all squares; on a CPU accumulated in float64.

    There get_total_norm adds a tensor's squares in one chain of float32, unlike a GPU: the norm of
    a million numbers is 1e-5 off, of 16 million 7e-4, and depends on how they are cut over ranks.
    """
    if gradients[0].is_cuda:
        return torch.nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total.float()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The whole value of a small tensor that may be distributed."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
