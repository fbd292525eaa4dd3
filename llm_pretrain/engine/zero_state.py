"""A training state between ZeRO's flat partitions and named shards that every engine reads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from deepspeed import utils
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, empty

from llm_pretrain.engine.base import State
from llm_pretrain.optim.adamw import make_state
from llm_pretrain.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroState:
    """Parameters, moments and step counts of a ZeRO optimizer, each tensor cut by its rows.

    On the way each device holds one whole tensor at a time. All ranks must ask for the same tensors
    in the same order.
    """

    def __init__(
        self,
        zero: Any,
        optimizer: torch.optim.AdamW,
        parameters: dict[str, nn.Parameter],
        world: World,
    ) -> None:
        """`zero`: DeepSpeed's wrapper of `optimizer`; `parameters`: by the model's own names."""
        self._zero, self._optimizer, self.parameters = zero, optimizer, parameters
        self._world = world
        self._host = init_device_mesh("cpu", (world.size,))
        self._devices = init_device_mesh(world.device.type, (world.size,))
        self._partitioned = hasattr(next(iter(parameters.values())), "ds_tensor")
        """Whether parameters are partitioned too, as at stage 3."""
        self._make_moments()

    def state(self) -> State:
        """A function for each tensor that gives this rank's rows of it."""
        return {
            "model": {name: partial(self.part, p) for name, p in self.parameters.items()},
            "optimizer": {
                name: {
                    "step": self._step,
                    **{moment: partial(self.part, p, moment) for moment in MOMENTS},
                }
                for name, p in self.parameters.items()
            },
        }

    def load(self, fill: Callable[[State], None], *, with_moments: bool) -> None:
        """Take over the values that `fill` puts into buffers for this rank's rows.

        Without moments, these and the count of updates are 0, as at the start of a run.
        """
        buffers: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}}
        for name, parameter in self.parameters.items():
            buffers["model"][name] = self.buffer(parameter)
            moments = {moment: self.buffer(parameter) for moment in MOMENTS}
            for value in () if with_moments else moments.values():
                value.zero_()
            buffers["optimizer"][name] = {"step": torch.zeros(()), **moments}
        if with_moments:
            fill(buffers)
        else:
            fill({"model": buffers["model"]})
        if self._partitioned:
            # Small parameters are whole between steps; the next forward pass gathers them anew.
            self._zero.checkpoint_event_prologue()
        for name, parameter in self.parameters.items():
            state = buffers["optimizer"].pop(name)
            # All parameters are updated together, so there is one count.
            self._set_step(state.pop("step"))
            self.set(parameter, None, self.whole(buffers["model"].pop(name)))
            for moment in MOMENTS:
                self.set(parameter, moment, self.whole(state.pop(moment)))

    @contextmanager
    def as_moment(self, name: str, values: Sequence[Tensor]) -> Iterator[None]:
        """Inside, tensors like those of `flat` are a moment of the parameters called `name`."""
        states = [self._optimizer.state[flat] for flat in self.flat]
        for state, value in zip(states, values, strict=True):
            state[name] = value
        self._link(states)
        try:
            yield
        finally:
            for state in states:
                del state[name]
            self._link(states)

    def _link(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Tell the parameters of stages 1 and 2 which moments there are."""
        if not self._partitioned:
            for group, flat, state in zip(self._zero.bit16_groups, self.flat, states, strict=True):
                for parameter in group:
                    if parameter._hp_mapping is not None:
                        parameter._hp_mapping.set_optim_state_fragment(flat, state)

    @torch.no_grad()
    def spread(self) -> None:
        """Bring the values of `flat` to the tensors that the model computes with."""
        zero = self._zero
        if not self._partitioned:
            zero.update_lp_params()
            return
        zero.checkpoint_event_prologue()
        for computed, flat in zip(zero.fp16_partitioned_groups_flat, self.flat, strict=True):
            computed.data.copy_(flat.data)

    def _make_moments(self) -> None:
        """Create the optimizer's state, which torch does in the first update only."""
        groups = self._optimizer.param_groups
        if self._partitioned:
            # DeepSpeed gives the optimizer its parameters for the time of an update only.
            for index, flat in enumerate(self.flat):
                groups[self._zero.sub_group_to_group_id[index]]["params"].append(flat)
        make_state(self._optimizer)
        if self._partitioned:
            for group in groups:
                group["params"] = []
        else:
            # Private, but else nothing but an update links parameters to their moments.
            self._zero._lazy_init_hp_params_optimizer_state()

    @property
    def flat(self) -> list[Tensor]:
        """This rank's partitions of the float32 parameters, as the optimizer knows them."""
        zero = self._zero
        flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat
            if self._partitioned
            else zero.single_partition_of_fp32_groups
        )
        return flat

    def _step(self) -> Tensor:
        step: Tensor = self._optimizer.state[self.flat[0]]["step"]
        return step

    def _set_step(self, step: Tensor) -> None:
        for flat in self.flat:
            self._optimizer.state[flat]["step"].copy_(step)

    def part(self, parameter: nn.Parameter, moment: str | None = None) -> DTensor:
        """This rank's rows of a parameter or of one of its moments."""
        whole = self._get(parameter, moment)
        rows = whole.chunk(self._world.size)
        local = rows[self._world.rank] if self._world.rank < len(rows) else whole[:0]
        return DTensor.from_local(
            local,
            self._devices,
            [Shard(0)],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )

    def buffer(self, parameter: nn.Parameter) -> DTensor:
        return empty(_shape(parameter), device_mesh=self._host, placements=[Shard(0)])

    def whole(self, part: DTensor) -> Tensor:
        """All rows, on this rank's device."""
        return DTensor.from_local(
            part.to_local().to(self._world.device),
            self._devices,
            [Shard(0)],
            run_check=False,
            shape=part.shape,
            stride=part.stride(),
        ).full_tensor()

    def _get(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        whole: Tensor
        if moment is not None:
            whole = utils.safe_get_full_optimizer_state(parameter, moment)
        elif self._partitioned:
            whole = utils.safe_get_full_fp32_param(parameter)
        else:
            whole = parameter.detach()
        return whole

    @torch.no_grad()
    def set(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None:
        """Set the optimizer's copy and, of a parameter, the one that the model computes with."""
        if self._partitioned:
            value = _partition(parameter, value, self._world.rank)
        if moment is not None:
            self._set_moment(parameter, value, moment)
        elif self._partitioned:
            utils.safe_set_local_fp32_param(parameter, value)
            parameter.ds_tensor.data.copy_(value)  # type: ignore[attr-defined]
        else:
            utils.safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)

    def _set_moment(self, parameter: nn.Parameter, value: Tensor, moment: str) -> None:
        if self._partitioned:
            utils.safe_set_local_optimizer_state(parameter, value, moment)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, which stage 3 keeps elsewhere."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _partition(parameter: nn.Parameter, value: Tensor, rank: int) -> Tensor:
    """Rank's part of the flattened value, filled up with zeros to the size all parts have."""
    size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    part = value.new_zeros(size)
    own = value.flatten()[rank * size : (rank + 1) * size]
    part[: own.numel()] = own
    return part
