"""Between DeepSpeed, which updates flat partitions, and update rules, which treat parameters."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_pretrain.optim.base import Rule
from llm_pretrain.optim.piece import Piece


class Handle(torch.optim.Optimizer):
    """The optimizer that DeepSpeed knows: one group of all parameters, for which it puts what this
    rank updates, a flat partition of them. At stage 3 there are several, given one at a time."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of the model."""
        super().__init__([{"params": list(parameters)}], {"lr": 0.0})
        self.update: Callable[[Tensor], None] | None = None
        """Called with a partition that has its gradients, averaged and clipped."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """As DeepSpeed calls it."""
        assert closure is None and self.update is not None
        (partition,) = self.param_groups[0]["params"]
        self.update(partition)


class Pieces:
    """This rank's pieces of the float32 parameters, which are views of its partitions."""

    def __init__(self, zero: Any, parameters: Mapping[str, nn.Parameter], rank: int) -> None:
        """`zero`: DeepSpeed's wrapper of a Handle; `parameters`: by the model's own names."""
        self._zero = zero
        self._cut = hasattr(next(iter(parameters.values())), "ds_tensor")
        """Whether parameters are partitioned too, as at stage 3."""
        self.named: dict[str, Piece] = {}
        """By the model's own names."""
        self._places: dict[str, _Place] = {}
        for name, parameter in parameters.items():
            place = _place_3(zero, parameter, rank) if self._cut else _place(parameter)
            shape = getattr(parameter, "ds_shape", parameter.shape)
            values = place.of(self._partitions[place.partition].detach())
            self.named[name], self._places[name] = Piece(values, shape, place.begin), place

    def update(self, partition: Tensor, rule: Rule) -> None:
        """Do what a rule of the pieces does with the gradients that a partition has.

        A rule that must see all gradients first does it when the last partition has come.
        """
        gradients, last = partition.grad, partition is self._partitions[-1]
        assert gradients is not None
        for name, piece in self.named.items():
            place = self._places[name]
            if self._partitions[place.partition] is partition:
                piece.grad = place.of(gradients)
        if not (rule.piecewise or last):
            return
        rule.step()
        for piece in self.named.values():
            piece.grad = None
        if self._cut and not rule.piecewise:
            # DeepSpeed has done so when the others came, too early.
            self._to_model()

    def spread(self) -> None:
        """Bring the pieces' values to the tensors that the model computes with, on all ranks."""
        if not self._cut:
            self._zero.update_lp_params()
            return
        # Small parameters are whole between steps; the next forward pass gathers them anew.
        self._zero.checkpoint_event_prologue()
        self._to_model()

    @torch.no_grad()
    def _to_model(self) -> None:
        """Of stage 3, where the model's part of each parameter is that of the same rank."""
        computed = self._zero.fp16_partitioned_groups_flat
        for model, partition in zip(computed, self._partitions, strict=True):
            model.data.copy_(partition.data)

    @property
    def _partitions(self) -> list[Tensor]:
        zero = self._zero
        partitions: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._cut else zero.single_partition_of_fp32_groups
        )
        return partitions


@dataclass(frozen=True)
class _Place:
    """Where a piece is."""

    partition: int
    """Index of its partition."""
    first: int
    """Index in the partition at which it begins."""
    begin: int
    """Index in the flattened parameter at which it begins."""
    size: int

    def of(self, partition: Tensor) -> Tensor:
        """The piece of a tensor like its partition."""
        return partition[self.first : self.first + self.size]


def _place(parameter: nn.Parameter) -> _Place:
    """At stages 1 and 2, where the row of all parameters is cut into equal parts."""
    # Private, but nothing public tells it.
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return _Place(0, 0, 0, 0)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return _Place(0, here.start, there.start, here.numel)


def _place_3(zero: Any, parameter: nn.Parameter, rank: int) -> _Place:
    """At stage 3, where each parameter is cut into equal parts, of which the last is filled up."""
    index, first, size = zero.grad_position[zero.get_param_id(parameter)]
    total: int = parameter.ds_numel  # type: ignore[attr-defined]
    begin = min(rank * size, total)
    return _Place(index, first, begin, min(size, total - begin))
