"""DeepSpeed's ZeRO, stages 1 to 3, with moments and parameters in host memory if asked."""

import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_pretrain.config.schema import PrecisionConfig, TrainConfig
from llm_pretrain.engine import fp8
from llm_pretrain.engine.base import State
from llm_pretrain.engine.blank import blank_model
from llm_pretrain.engine.inputs import Inputs
from llm_pretrain.engine.precision import autocast
from llm_pretrain.engine.zero_config import require_deepspeed, zero_config
from llm_pretrain.engine.zero_parts import ZeroParts
from llm_pretrain.engine.zero_pieces import Handle, Pieces
from llm_pretrain.engine.zero_state import ZeroState
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.averaging import Parts
from llm_pretrain.optim.build import Lengths, build_rule
from llm_pretrain.world import World


class DeepSpeedEngine:
    """Moments, then gradients, then parameters cut over all ranks, all of them in float32.

    Precision means what it means under FSDP: DeepSpeed keeps, averages and updates float32, and
    bf16 is autocast in the forward pass. The price: stage 3 gathers parameters in float32, twice
    the traffic of bfloat16. DeepSpeed's own torch_autocast would halve it, but then it averages
    gradients in bfloat16, too.

    DeepSpeed skips a step whose gradients are not finite. The norm is infinite then, and stays so
    in every later step, so that whoever looks at some steps only cannot miss it.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        *,
        fresh: bool = True,
        end_of_text: int | None = None,
    ) -> None:
        """`fresh` and `end_of_text`: as for `build_engine`.

        Raises UserError when DeepSpeed is missing or too old.
        """
        require_deepspeed()
        self._config, self._world, self._end_of_text = config, world, end_of_text
        deepspeed = _set_up(config, world)
        # Nothing here draws from the global generators, but what they hold is part of a checkpoint.
        torch.manual_seed(config.run.seed)
        model = _hollow_model(config, world.device)
        settings = zero_config(config, world.device.type)
        values = model.initial_values(config.run.seed) if fresh else _no_values(model)
        _fill(model, values, deepspeed, settings)
        self._model, handle = model, Handle(model.parameters())
        self._engine = deepspeed.initialize(
            model=_Losses(model, config.precision, world.device),
            optimizer=handle,
            config=settings,
            dist_init_required=False,
        )[0]
        zero = self._engine.optimizer
        pieces = Pieces(zero, dict(model.named_parameters()), world.rank)
        named, total = pieces.named.items(), ZeroState.total
        self.rule = build_rule(named, config.optimizer, Lengths.of(config), total=total)
        handle.update = partial(pieces.update, rule=self.rule)
        self._state = ZeroState(self.rule, pieces, world)
        self._loss: Tensor | None = None
        self._broken = False

    def forward_backward(self, tokens: Tensor, *, weight: float, last: bool) -> Tensor:
        """See Engine."""
        self._state.train()
        self._engine.set_gradient_accumulation_boundary(last)
        loss: Tensor = self._losses(tokens, mean=True) * weight
        self._engine.backward(loss, scale_wrt_gas=False)
        loss = loss.detach()
        if self.rule.needs_loss:
            self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def step(self, lr: float) -> Tensor:
        """See Engine."""
        for group in self.rule.param_groups:
            group["lr"] = lr
        self.rule.given(loss=self._loss, clipped=self._clipped)
        self._loss = None
        self._engine.step()
        self._broken |= not self._engine.was_step_applied()
        norm = float("inf") if self._broken else self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._world.device)

    def _clipped(self) -> Tensor | None:
        """The factor that DeepSpeed has multiplied the gradients by."""
        clip = self._config.optimizer.grad_clip
        if clip <= 0:
            return None
        # Private: the public one is set after the update.
        norm = torch.as_tensor(self._engine.optimizer._global_grad_norm)
        return 1 / ((norm + 1e-6) / clip).clamp(min=1.0)

    @torch.no_grad()
    def evaluate(self, tokens: Tensor) -> Tensor:
        """See Engine."""
        self._state.evaluate()
        with fp8.unchanged(self._model, self._config.precision):
            return self._losses(tokens, mean=False).mean(dim=1)

    def _losses(self, tokens: Tensor, *, mean: bool) -> Tensor:
        losses: Tensor = self._engine(Inputs.of(tokens, self._end_of_text, self._world), mean)
        return losses

    def kurtosis(self) -> Tensor | None:
        """See Engine."""
        return self._model.kurtosis

    def rates(self) -> dict[str, Tensor]:
        """See Engine."""
        return self.rule.rates()

    def parts(self) -> Parts:
        """See Engine."""
        return ZeroParts(self._state)

    def state(self) -> State:
        """See Engine."""
        return {**self._state.state(), **fp8.state(self._model, self._config.precision)}

    def load(
        self,
        fill: Callable[[State], None],
        saved: Collection[str] | None = None,
        *,
        step: int = 0,
    ) -> bool:
        """See Engine."""
        filling = fp8.loading(self._model, self._config.precision, fill)
        self._broken, self._loss = False, None
        return self._state.load(filling, saved, step)


class _Losses(nn.Module):
    """The losses. Autocast is inside, since DeepSpeed ends any that is around it."""

    def __init__(
        self, model: Transformer, precision: PrecisionConfig, device: torch.device
    ) -> None:
        super().__init__()
        self.model = model
        self._precision, self._device = precision, device

    def forward(self, inputs: Inputs, mean: bool) -> Tensor:
        """(B, T), or their mean."""
        with autocast(self._precision, self._device):
            losses: Tensor = self.model(*inputs, mean=mean)
        return losses


def _set_up(config: TrainConfig, world: World) -> Any:
    """The package, told about this rank's device and process group."""
    # It takes both from the environment. On a node that shows each task one GPU, its index is not
    # the local rank.
    os.environ["DS_ACCELERATOR"] = world.device.type
    os.environ["LOCAL_RANK"] = str(world.device.index or 0)
    import deepspeed  # noqa: PLC0415  (slow, and an extra)

    # It still calls collectives by the names that torch 2.13 renamed.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Otherwise it compiles a C++ extension for shared memory at the first use, for nearly a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.addFilter(_wanted)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed


def _wanted(record: logging.LogRecord) -> bool:
    """Whether a line of DeepSpeed's log is news: it calls each optimizer that is not its own
    untested, and ours is a handle."""
    return "untested optimizer" not in record.getMessage()


def _hollow_model(config: TrainConfig, device: torch.device) -> Transformer:
    """The model with parameters of the right shape and device that take no memory."""
    model = blank_model(config, device)
    return model._apply(lambda p: torch.zeros((), dtype=p.dtype, device=device).expand(p.shape))


def _no_values(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Memory for each parameter, with whatever lies there."""
    for name, parameter in list(model.named_parameters()):
        yield name, torch.empty(parameter.shape)


def _fill(
    model: Transformer,
    values: Iterator[tuple[str, Tensor]],
    deepspeed: Any,
    settings: dict[str, Any],
) -> None:
    """Give parameters their values, one after the other.

    At stage 3 each rank keeps its part of one before the next is made.
    """
    parameters = dict(model.named_parameters())
    for name, value in values:
        parameter = parameters[name]
        parameter.data = value.to(parameter.device)
        if settings["zero_optimization"]["stage"] == 3:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=settings)
