"""What engines and checkpoints need of an update rule, beyond what torch's optimizers offer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llm_pretrain.optim.piece import Piece
from llm_pretrain.parts import local

Groups = list[dict[str, Any]]
"""Parameter groups as torch has them."""
_BATCH = 2**26
"""Elements that are updated at a time, which bounds the memory of intermediate results."""


def alone(vector: Tensor) -> Tensor:
    """The sum over all ranks when there is only one."""
    return vector


@dataclass(frozen=True)
class Batch:
    """Some parameters of a group with their gradients and state: what this rank holds of each."""

    owners: list[Tensor]
    """The parameters as the group has them."""
    params: list[Tensor]
    grads: list[Tensor]
    state: dict[str, list[Tensor]]
    """By name, in the order of `params`."""


class HostNumber:
    """A float64 that the host may read at any time, and its tensor for checkpoints.

    Both are the same memory, so that a load into the tensor sets the number, and reading it is no
    operation of torch's that could wait for a device.
    """

    def __init__(self, value: float = 0.0) -> None:
        self._array = np.full((), value)
        self.tensor = torch.from_numpy(self._array)
        """0-dim, on the CPU."""

    @property
    def value(self) -> float:
        """The number."""
        return float(self._array)

    @value.setter
    def value(self, value: float) -> None:
        self._array[...] = value


class Rule(torch.optim.Optimizer, ABC):
    """An update rule whose whole state exists from the start, in tensors.

    `state[p]` has for each parameter tensors that are like it (a DTensor where it is one) or 0-dim.
    `shared` has 0-dim tensors of the whole rule. Both are to be saved, once each, and loaded in
    place; the parameter itself is the point at which training goes on. What `readout` gives is to
    be evaluated, exported and branched from.

    All groups have the same learning rate, `group["lr"]`, which is set before each step.
    """

    needs_loss: ClassVar[bool] = False
    """Whether `update` must be told the loss."""
    piecewise: ClassVar[bool] = False
    """Whether a step may be done in several: parameters without gradients take no part, and the
    rule has no count or sum over all."""
    late: frozenset[str] = frozenset()
    """Names in the state that may begin in the middle of a run: see `begin`."""

    def __init__(self, groups: Groups, defaults: dict[str, Any]) -> None:
        """The rules call `make_state` when they are ready for it."""
        super().__init__(groups, defaults)
        self.shared: dict[str, Tensor] = {}
        self.rate: Tensor | float = 0.0
        """What the last step multiplied its direction by: the learning rate, or what Polyak's
        formula made of it (0-dim, on the device)."""
        self._loss: Tensor | None = None
        self._clipped: Tensor | Callable[[], Tensor | None] | None = None

    @torch.no_grad()
    def make_state(self, step: int = 0) -> None:
        """Give each parameter in `param_groups` its first state; that of others is dropped.

        Parameters must have the values with which training starts, after `step` updates by another
        rule, if any.
        """
        self.state.clear()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._first_state(group, parameter)

    @torch.no_grad()
    def update(self, *, loss: Tensor | None = None, clipped: Tensor | None = None) -> None:
        """One step with the gradients that the parameters have.

        Args:
            loss: this rank's mean loss, 0-dim, at the same point and data as the gradients; the
                mean over ranks is taken here. Only read where `needs_loss`.
            clipped: factor that gradients have been multiplied by, 0-dim; None: by none.
        """
        self.given(loss=loss, clipped=clipped)
        self.step()

    def begin(self, names: Collection[str]) -> None:
        """Make those of `late` that a checkpoint does not have, at the parameters' present values;
        all ranks together. A step count that it does not have is 0."""

    def given(
        self,
        *,
        loss: Tensor | None = None,
        clipped: Tensor | Callable[[], Tensor | None] | None = None,
    ) -> None:
        """Set what the next `step` needs, where someone else calls it, as DeepSpeed does.

        `clipped` may be a function, which is called in the step.
        """
        self._loss, self._clipped = loss, clipped

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, as torch calls it; closures are not supported."""
        assert closure is None
        loss, clipped = self._loss, self._clipped
        self._loss = self._clipped = None
        if self.needs_loss and loss is None:
            raise RuntimeError(f"{type(self).__name__} needs the loss: update(loss=...)")
        self.rate = self.lr
        self._update(loss, clipped() if callable(clipped) else clipped)

    @property
    def lr(self) -> float:
        """The learning rate of all groups."""
        lr: float = self.param_groups[0]["lr"]
        return lr

    def rates(self) -> dict[str, Tensor]:
        """What the last step's size was beside the learning rate, to be shown: 0-dim tensors on the
        device, by the names that they have in the metrics."""
        return {}

    def readout(self, parameter: Tensor) -> Tensor:
        """The value to evaluate, export and branch from: a new tensor, or the parameter itself."""
        return parameter

    @property
    def averages(self) -> bool:
        """Whether `readout` differs from the parameter."""
        return type(self).readout is not Rule.readout

    @abstractmethod
    def _first_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before the first step."""

    @abstractmethod
    def _update(self, loss: Tensor | None, clipped: Tensor | None) -> None:
        """Do the step."""

    def _adopt(self, inner: torch.optim.Optimizer, groups: Groups | None = None) -> None:
        """Let another optimizer do the work on this one's groups (or some of them) and state."""
        inner.param_groups = self.param_groups if groups is None else groups
        inner.state = self.state

    def _batches(self, *names: str, groups: Groups | None = None) -> Iterator[tuple[float, Batch]]:
        """Weight decay and local tensors of all parameters with gradients, some at a time.

        `names`: of the state that is wanted.
        """
        for group in self.param_groups if groups is None else groups:
            found = [p for p in group["params"] if p.grad is not None and local(p).numel()]
            for owners in _cut(found):
                yield (
                    group["weight_decay"],
                    Batch(
                        owners=owners,
                        params=[local(p) for p in owners],
                        grads=[gradient(p) for p in owners],
                        state={n: [local(self.state[p][n]) for p in owners] for n in names},
                    ),
                )


def gradient(parameter: Tensor) -> Tensor:
    """What this rank holds of a gradient, cut as the parameter is."""
    found = parameter.grad
    assert found is not None
    if isinstance(parameter, DTensor) and isinstance(found, DTensor):
        if found.placements != parameter.placements:
            found = found.redistribute(placements=parameter.placements)
        return found.to_local()
    return found


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """A tensor cut as `tensor` is, of which this rank holds `part`."""
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def copies(tensor: Tensor, plain: int) -> int:
    """How many ranks hold the same values as this one.

    A sum over all ranks counts each element once if each rank divides its part by this. The mesh
    of a DTensor is taken to span all ranks. `plain`: the answer for whole tensors: the number of
    ranks that have the same, as with DDP.
    """
    if isinstance(tensor, Piece):
        return 1
    if not isinstance(tensor, DTensor):
        return plain
    count = 1
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        count *= size if placement.is_replicate() else 1
    return count


def summed(terms: Iterable[tuple[int, Tensor]], device: torch.device) -> Tensor:
    """The sum of 0-dim float64 tensors, each divided by its number of `copies`."""
    by_copies: dict[int, list[Tensor]] = {}
    for count, term in terms:
        by_copies.setdefault(count, []).append(term)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for count, found in by_copies.items():
        total = total + torch.stack(found).sum() / count
    return total


def _cut(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of together at most `_BATCH` elements, or one that has more."""
    batch: list[Tensor] = []
    size = 0
    for parameter in parameters:
        count = local(parameter).numel()
        if batch and size + count > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(parameter)
        size += count
    if batch:
        yield batch
