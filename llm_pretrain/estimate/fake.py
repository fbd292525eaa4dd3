"""The real engine on fake tensors and a fake process group: any model, any number of ranks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Tensors with a shape and no memory; torch.compile's own, which nothing public gives. The meta
# device would not do: DTensor and FSDP take it for a model that has yet to be filled.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Partial

# Nothing public makes a group of ranks that are not there. Without it an estimate would need one
# process for each rank of the cluster.
from torch.testing._internal.distributed.fake_pg import FakeStore

from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.engine.offload import ActivationOffload
from llm_pretrain.estimate.ledger import Ledger
from llm_pretrain.estimate.operation import local
from llm_pretrain.model.loss import product_dtype
from llm_pretrain.model.transformer import Norm
from llm_pretrain.world import World


def keeps_scores(config: TrainConfig) -> bool:
    """Whether attention on a GPU makes and keeps all scores, (B, H, T, T), for the backward pass.

    Fused kernels of float32 know no groups of query heads with torch up to 2.13; flash attention
    and cuDNN know no float32.
    """
    model = config.model
    grouped = model.kv_heads < model.heads
    cornered = config.engine.device != "cpu" and config.precision.name == "fp32" and grouped
    return model.attention == "math" or (model.attention == "auto" and cornered)


class FakeEngine(FsdpEngine):
    """Rank 0's engine, with parameters that have a shape and no memory."""

    def __init__(self, config: TrainConfig, world: World, ledger: Ledger) -> None:
        self._fake, self._ledger = FakeTensorMode(), ledger
        # Of all kernels that do not keep scores, the one that runs here keeps what the others do.
        kernel: Any = "math" if keeps_scores(config) else "flash"
        super().__init__(replace(config, model=replace(config.model, attention=kernel)), world)
        if config.engine.device != "cpu":
            for module in self.model.modules():
                if isinstance(module, Norm):
                    module.forward = partial(_cuda_norm, module, ledger)  # type: ignore[method-assign]
        if config.engine.offload_activations:
            self.model.around = _FakeOffload(config.model.layers, ledger)
        with self.running():
            self.rule.make_state()
        moments = [t for state in self.rule.state.values() for t in state.values()]
        ledger.name(moments, "moments")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where the engine may be used: operations are faked, and written to the ledger."""
        with self._fake, self._ledger:
            yield

    def _fill(self, fresh: bool) -> None:
        # to_empty() swaps each parameter with its replacement, which FakeTensorMode prevents.
        shapes = {id(p): local(p).shape for p in self.model.parameters()}
        with self.running():
            made: dict[int, nn.Parameter] = {}
            for module in self.model.modules():
                # named_parameters() would leave out the second name of a tied one.
                for name, parameter in list(module._parameters.items()):
                    if parameter is None:
                        continue
                    key = id(parameter)
                    if key not in made:
                        made[key] = _parameter(parameter, shapes[key])
                    setattr(module, name, made[key])
        self._ledger.name(list(made.values()), "parameters")


@contextmanager
def fake_world(layout: Layout, *, grouped: bool) -> Iterator[World]:
    """Rank 0 of as many ranks as the layout has. `grouped`: as a process group, even if alone."""
    device = torch.device("cpu")
    if not grouped:
        yield World(0, layout, device)
        return
    # Advice about how DTensor communicates belongs to a run.
    advice = logging.getLogger("torch.distributed.tensor")
    level = advice.level
    advice.setLevel(logging.ERROR)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.size)
    try:
        yield World(0, layout, device, dist.group.WORLD)
    finally:
        dist.destroy_process_group()
        advice.setLevel(level)


def _parameter(like: Tensor, shape: torch.Size) -> nn.Parameter:
    """Fake memory for a parameter, or for this rank's part of one."""
    part = torch.empty(shape, dtype=like.dtype)
    if not isinstance(like, DTensor):
        return nn.Parameter(part)
    whole = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return nn.Parameter(whole)


def _cuda_norm(norm: Norm, ledger: Ledger, x: Tensor) -> Tensor:
    """`Norm.forward` with CUDA's kernel: the CPU's leaves intermediate results behind."""
    fused: Any = _FusedNorm.apply
    y: Tensor = fused(x.float(), norm.weight.float(), ledger)
    return y.to(product_dtype(x))


class _FakeOffload(ActivationOffload):
    """Copies as on a device: host memory is another one."""

    def __init__(self, blocks: int, ledger: Ledger) -> None:
        super().__init__(blocks, torch.device("cpu"))
        self._ledger = ledger

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = tensor.clone()
        self._ledger.name([host], "offloaded")
        return host

    def _to_device(self, host: list[Tensor]) -> list[Tensor]:
        return [tensor.clone() for tensor in host]


class _FusedNorm(torch.autograd.Function):
    """Allocates and keeps what CUDA's RMSNorm does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ledger: Ledger) -> Tensor:
        y = torch.empty_like(x)
        ctx.save_for_backward(x, weight, torch.empty_like(x[..., :1]))
        ctx.ledger = ledger
        ledger.kernel(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, _ = ctx.saved_tensors
        dx = torch.empty_like(x)
        ctx.ledger.kernel(x, *gradients, dx)
        if not isinstance(weight, DTensor):
            return dx, torch.empty_like(weight), None
        # Each rank has the sum over its own positions.
        part = torch.empty_like(local(weight))
        mesh = weight.device_mesh
        return dx, DTensor.from_local(part, mesh, [Partial()], run_check=False), None
