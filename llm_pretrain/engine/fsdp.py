"""FSDP2 and tensor parallelism on a mesh of ranks; with a single process, the plain module."""

import contextlib
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.parallel import loss_parallel

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine import fp8
from llm_pretrain.engine.base import Remembered, State
from llm_pretrain.engine.blank import blank_model
from llm_pretrain.engine.inputs import Inputs
from llm_pretrain.engine.parallel import context_mesh, distribute
from llm_pretrain.engine.precision import autocast
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.averaging import Parts, Plain
from llm_pretrain.optim.base import Rule
from llm_pretrain.optim.build import Lengths, build_rule
from llm_pretrain.parts import assign, local, whole_value
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
        self.rule = self._make_rule()
        self._loss: torch.Tensor | None = None
        self._trained: list[torch.Tensor] | None = None
        """What the parameters hold in training, while they hold what is evaluated."""

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        """See Engine."""
        self._train()
        if isinstance(self.model, FSDPModule):
            whole = self._config.engine.accumulate == "whole"
            self.model.set_requires_gradient_sync(last or not whole)
            self.model.set_requires_all_reduce(last)
        with self._sharded_loss():
            loss = whole_value(self._losses(tokens, mean=True) * weight)
            loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        if self.rule.needs_loss:
            self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def step(self, lr: float) -> torch.Tensor:
        """See Engine."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = whole_value(_total_norm([p.grad for p in parameters if p.grad is not None]))
        clip, clipped = self._config.optimizer.grad_clip, None
        if clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            # The factor that this multiplies by.
            clipped = (clip / (norm + 1e-6)).clamp(max=1.0)
        for group in self.rule.param_groups:
            group["lr"] = lr
        self.rule.update(loss=self._loss, clipped=clipped)
        self.rule.zero_grad(set_to_none=True)
        self._loss = None
        return norm

    @torch.no_grad()
    def evaluate(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Engine."""
        self._read_out()
        with self._sharded_loss(), fp8.unchanged(self.model, self._config.precision):
            losses = whole_value(self._losses(tokens).mean(dim=1))
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

    def rates(self) -> dict[str, torch.Tensor]:
        """See Engine."""
        return self.rule.rates()

    def parts(self) -> Parts:
        """See Engine."""
        self._train()
        return Plain(self._parameters)

    def state(self) -> State:
        """See Engine."""
        self._train()
        rule = self.rule
        model = {name: _readout(rule, p) for name, p in self._parameters.items()}
        return {"model": model, **self._of_rule(), **fp8.state(self.model, self._config.precision)}

    def load(
        self,
        fill: Callable[[State], None],
        saved: Collection[str] | None = None,
        *,
        step: int = 0,
    ) -> bool:
        """See Engine."""
        self._train()
        found = Remembered.of(self.rule, self._of_rule(), saved)
        # What is read out follows from the point at which training goes on.
        point = found.whole and self.rule.averages
        model = {} if point else {n: p.detach() for n, p in self._parameters.items()}
        fp8.loading(self.model, self._config.precision, fill)({"model": model, **found.state})
        found.begin(self.rule, step)
        return found.whole

    def _of_rule(self) -> State:
        """What the update rule remembers, and where training goes on if that is elsewhere."""
        own: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            own[name] = dict(self.rule.state[parameter])
            if self.rule.averages:
                own[name]["point"] = parameter.detach()
        return {"optimizer": own, **({"rule": dict(self.rule.shared)} if self.rule.shared else {})}

    def _read_out(self) -> None:
        """Let the parameters have the values to evaluate, until `_train`."""
        if self._trained is not None or not self.rule.averages:
            return
        self._trained = [local(p).clone() for p in self._parameters.values()]
        for parameter in self._parameters.values():
            local(parameter).copy_(local(self.rule.readout(parameter)))

    @torch.no_grad()
    def _train(self) -> None:
        """Let the parameters be the point of training again, bit by bit, if they are not."""
        if self._trained is None:
            return
        for parameter, values in zip(self._parameters.values(), self._trained, strict=True):
            local(parameter).copy_(values)
        self._trained = None

    def _make_rule(self) -> Rule:
        config = self._config
        return build_rule(
            self._parameters.items(), config.optimizer, Lengths.of(config), total=self._total
        )

    def _total(self, vector: torch.Tensor) -> torch.Tensor:
        if self._world.io_group is not None:
            dist.all_reduce(vector)
        return vector

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


def _readout(rule: Rule, parameter: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
    """What is saved of a parameter: made when it is asked for, where that takes memory."""
    return partial(rule.readout, parameter) if rule.averages else parameter.detach()
