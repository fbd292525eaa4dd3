"""Running averages of the parameters: windows and exponential ones, cut over ranks as they are."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

State = dict[str, Any]
"""Nested dict, as `engine.base.State`."""


class Parts(Protocol):
    """This rank's own part of the parameters, as an engine keeps it."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Float32 tensors under names that never change; DTensors where they are parts of larger
        ones. What is written into them becomes the parameters' value."""
        ...

    def written(self) -> None:
        """Other values are in the tensors: bring them to whatever holds copies, on every rank."""
        ...

    def saved(self, values: Mapping[str, Tensor]) -> State:
        """Leaves of a checkpoint, under the model's names, for tensors like those of `tensors`."""
        ...

    def loaded(self, values: Mapping[str, Tensor], read: Callable[[State], None]) -> None:
        """Fill tensors like those of `tensors` with what `read` puts into leaves like `saved`."""
        ...


class Plain:
    """Parameters that are tensors of their own, whole or DTensors: those of FSDP2 and one process.

    FSDP2 may replace the memory of a DTensor's local part in its first forward pass, hence parts
    are looked up at each use.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)

    def tensors(self) -> Mapping[str, Tensor]:
        """See Parts."""
        return self._parameters

    def written(self) -> None:
        """See Parts."""

    def saved(self, values: Mapping[str, Tensor]) -> State:
        """See Parts."""
        return dict(values)

    def loaded(self, values: Mapping[str, Tensor], read: Callable[[State], None]) -> None:
        """See Parts."""
        read(dict(values))


@dataclass
class _Average:
    """One average, and how many samples it has taken."""

    values: dict[str, Tensor]
    """A sum while its window is not complete, else the average."""
    count: Tensor
    """int64 on the host."""
    window: int = 0
    """Steps; 0 for an exponential average."""
    half_life: int = 0

    def take(self, parts: list[Tensor], step: int, every: int) -> None:
        """Add a sample after `step` updates."""
        if self.window:
            self._add(parts, step, every)
        else:
            self._decay(parts, every)

    def _add(self, parts: list[Tensor], step: int, every: int) -> None:
        values, last = _locals(self.values.values()), self.window // every
        index = (step % self.window or self.window) // every
        if index == 1:
            torch._foreach_copy_(values, parts)
        elif int(self.count) == index - 1:
            torch._foreach_add_(values, parts)
        else:
            # It began before there was anything to average: the next window is the first.
            return
        self.count.fill_(index)
        if index == last:
            torch._foreach_div_(values, float(last))

    def _decay(self, parts: list[Tensor], every: int) -> None:
        self.count += 1
        values, count = _locals(self.values.values()), int(self.count)
        if count == 1:
            torch._foreach_copy_(values, parts)
            return
        # Weights 1, d, d^2, ... from the newest sample back, divided by their sum, so that the
        # first sample counts no more than it should by its age.
        decay = 2.0 ** (-every / self.half_life)
        torch._foreach_lerp_(values, parts, (1 - decay) / (1 - decay**count))

    def complete(self, step: int, every: int) -> bool:
        """Whether `values` are an average that belongs to `step`."""
        if self.window:
            return step % self.window == 0 and int(self.count) == self.window // every
        return int(self.count) > 0


class Averages:
    """Averages of samples taken every few updates, each with a tensor of its own per parameter.

    They are exact at every step, also within a window, and a function of the parameters' values at
    the sampled steps only. Nothing here waits for the device.

    The paper's code takes the first sample after the first update of a window, and then every k-th.
    This one takes the k-th, the 2k-th and so on: what is evaluated at the end of a window then has
    the newest parameters in it, and does not depend on where a session began.
    """

    def __init__(
        self, parts: Parts, *, every: int, windows: Sequence[int], half_lives: Sequence[int]
    ) -> None:
        """All lengths in steps; each window is a multiple of `every`."""
        self._parts, self._every = parts, every
        self._averages = {f"window_{n}": self._make(window=n) for n in windows}
        self._averages |= {f"half_life_{n}": self._make(half_life=n) for n in half_lives}

    @property
    def names(self) -> list[str]:
        """Of all averages, complete or not: 'window_500', 'half_life_1000'."""
        return list(self._averages)

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Take a sample if one is due after `step` updates; to be called after each."""
        if self._averages and step % self._every == 0:
            parts = _locals(self._parts.tensors().values())
            for average in self._averages.values():
                average.take(parts, step, self._every)

    def complete(self, step: int) -> list[str]:
        """Names of the averages that can be evaluated after `step` updates."""
        return [n for n, a in self._averages.items() if a.complete(step, self._every)]

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Inside, the parameters hold the average; afterwards what they held before, bit by bit.

        They change places one tensor after the other, which takes memory for the largest local part
        of one. Inside, neither `after` nor `state` may be called.
        """
        average = self._averages[name]
        self._swap(average)
        try:
            yield
        finally:
            self._swap(average)

    def state(self) -> State:
        """Everything that makes the averages go on as if nothing had happened, for a checkpoint."""
        return {key: self._leaves(average) for key, average in self._keyed()}

    def load(self, fill: Callable[[State], None], saved: set[str], prefix: str = "average") -> None:
        """Take over what a checkpoint holds under `prefix`; all ranks together.

        `saved`: the names of its tensors. An average that is not among them, or was sampled at
        another interval, begins anew: a window at its next start, an exponential average at once.
        """
        for key, average in self._keyed():
            average.count.zero_()
            if f"{prefix}.{key}.count" in saved:
                self._load(average, fill, prefix, key)

    def _load(
        self, average: _Average, fill: Callable[[State], None], prefix: str, key: str
    ) -> None:
        def read(model: State) -> None:
            fill({prefix: {key: {"count": average.count, "model": model}}})

        self._parts.loaded(average.values, read)

    def _leaves(self, average: _Average) -> State:
        return {"count": average.count, "model": self._parts.saved(average.values)}

    def _keyed(self) -> Iterator[tuple[str, _Average]]:
        """With names that two averages share exactly when one can go on as the other."""
        for name, average in self._averages.items():
            yield f"{name}_every_{self._every}", average

    @torch.no_grad()
    def _make(self, *, window: int = 0, half_life: int = 0) -> _Average:
        values = {
            name: torch.zeros_like(part, dtype=torch.float32, requires_grad=False)
            for name, part in self._parts.tensors().items()
        }
        return _Average(values, torch.zeros((), dtype=torch.int64), window, half_life)

    @torch.no_grad()
    def _swap(self, average: _Average) -> None:
        parts = self._parts.tensors()
        for name, value in average.values.items():
            mine, other = _local(parts[name]), _local(value)
            raw = mine.clone()
            mine.copy_(other)
            other.copy_(raw)
        self._parts.written()


def _locals(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [_local(tensor) for tensor in tensors]


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of it, in the tensor's own memory. Called without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
