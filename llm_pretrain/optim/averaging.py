"""Running averages of the parameters: windows and exponential ones, cut over ranks as they are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_pretrain.config.average import AverageSteps
from llm_pretrain.parts import local

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


class _Windows:
    """Sums of the newest stretches of `stride` steps, of which each window is so many."""

    def __init__(self, parts: Parts, asked: AverageSteps) -> None:
        self.every, self.stride = asked.every, asked.stride
        self.lengths = {f"window_{n}": n for n in asked.windows}
        self._sums = [_zeros(parts) for _ in range(asked.sums)]
        """Stretch i, the steps from i stride + 1 on, is at the place i modulo their number."""
        self.count = torch.zeros((), dtype=torch.int64)
        """Samples in the sums, from the first of a stretch to the newest without a gap. On the
        host."""

    def __len__(self) -> int:
        return len(self._sums)

    def aged(self, age: int, step: int) -> dict[str, Tensor]:
        """The sum of the stretch that holds `step`, or of the one so many before it."""
        return self._sums[((step - 1) // self.stride - age) % len(self)]

    def take(self, values: list[Tensor], step: int) -> None:
        """Add a sample after `step` updates."""
        sums, first = _locals(self.aged(0, step).values()), self._taken(step) == 1
        if first:
            torch._foreach_copy_(sums, values)
        elif int(self.count):
            torch._foreach_add_(sums, values)
        # Else it began before there was anything to average: the next stretch is the first.
        self.count += first or int(self.count) > 0

    def reach(self, step: int, known: int) -> None:
        """After `step` updates the newest `known` stretches are all that is there."""
        most = self._taken(step) + (known - 1) * (self.stride // self.every) if known else 0
        self.count.clamp_(max=most)

    def complete(self, step: int) -> list[str]:
        """Names of the windows that end at `step` and have all their samples."""
        if not step or step % self.stride:
            return []
        return [name for name, n in self.lengths.items() if n <= int(self.count) * self.every]

    def mean(self, name: str, key: str, step: int) -> Tensor:
        """The local part of a parameter's mean over a window that is complete at `step`."""
        length = self.lengths[name]
        ages = range(length // self.stride)
        parts = [local(self.aged(age, step)[key]) for age in reversed(ages)]
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total.div_(length // self.every)

    def _taken(self, step: int) -> int:
        """Samples that belong to the stretch of `step` until then."""
        return (step - (step - 1) // self.stride * self.stride) // self.every


class _HalfLife:
    """An exponential average."""

    def __init__(self, parts: Parts, every: int, half_life: int) -> None:
        self.values = _zeros(parts)
        self.count = torch.zeros((), dtype=torch.int64)
        """Samples so far. On the host."""
        self._decay = 2.0 ** (-every / half_life)

    def take(self, values: list[Tensor]) -> None:
        """Add a sample."""
        self.count += 1
        mine, count = _locals(self.values.values()), int(self.count)
        if count == 1:
            torch._foreach_copy_(mine, values)
            return
        # Weights 1, d, d^2, ... from the newest sample back, divided by their sum, so that the
        # first sample counts no more than it should by its age.
        torch._foreach_lerp_(mine, values, (1 - self._decay) / (1 - self._decay**count))


class Averages:
    """Averages of samples taken every few updates, cut over ranks as the parameters are.

    They are exact at every step, also within a window, and a function of the parameters' values at
    the sampled steps only. Nothing here waits for the device.

    The paper's code takes the first sample after the first update of a window, and then every k-th.
    This one takes the k-th, the 2k-th and so on: what is evaluated at the end of a window then has
    the newest parameters in it, and does not depend on where a session began.
    """

    @torch.no_grad()
    def __init__(self, parts: Parts, asked: AverageSteps) -> None:
        """Where nothing is asked for, they take no memory and no time."""
        self._parts, self._every, self._step = parts, asked.every, 0
        self._windows = _Windows(parts, asked) if asked.windows else None
        self._lives = {f"half_life_{n}": _HalfLife(parts, asked.every, n) for n in asked.half_lives}

    @property
    def names(self) -> list[str]:
        """Of all averages, complete or not: 'window_500', 'half_life_1000'."""
        windows = self._windows.lengths if self._windows else ()
        return [*windows, *self._lives]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Take a sample if one is due after `step` updates; to be called after each."""
        self._step = step
        if not self.names:
            return
        if step % self._every == 0:
            values = _locals(self._parts.tensors().values())
            if self._windows:
                self._windows.take(values, step)
            for life in self._lives.values():
                life.take(values)
        if self._windows:
            self._windows.reach(step, len(self._windows))

    def complete(self) -> list[str]:
        """Names of the averages that can be evaluated now."""
        lives = [name for name, life in self._lives.items() if int(life.count)]
        return [*(self._windows.complete(self._step) if self._windows else ()), *lives]

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Inside, the parameters hold the average; afterwards what they held before, bit by bit.

        Until then there is a copy of what they held: 4 bytes for each parameter that this rank has,
        at a time when there are no gradients, which take as much.
        """
        held = self._exchange(name)
        try:
            yield
        finally:
            self._put_back(held)

    def state(self) -> State:
        """Everything that makes the averages go on as if nothing had happened, for a checkpoint."""
        saved: State = {}
        if windows := self._windows:
            ages = {f"age_{a}": windows.aged(a, self._step) for a in range(len(windows))}
            saved[self._sums_key(windows)] = {
                "count": windows.count,
                **{age: self._parts.saved(values) for age, values in ages.items()},
            }
        for name, life in self._lives.items():
            leaves = {"count": life.count, "model": self._parts.saved(life.values)}
            saved[self._life_key(name)] = leaves
        return saved

    def load(
        self, step: int, fill: Callable[[State], None], saved: set[str], prefix: str = "average"
    ) -> None:
        """Take over what a checkpoint of `step` holds under `prefix`; all ranks together.

        `saved`: the names of its tensors. What is not among them, or was sampled at another
        interval, begins anew: a window at its next start, an exponential average at once.
        """
        self._step = step

        def known(key: str) -> bool:
            return any(name.startswith(f"{prefix}.{key}.") for name in saved)

        def take(key: str, leaf: str, values: Mapping[str, Tensor]) -> None:
            self._parts.loaded(values, lambda own: fill({prefix: {key: {leaf: own}}}))

        for name, life in self._lives.items():
            life.count.zero_()
            if known(self._life_key(name)):
                fill({prefix: {self._life_key(name): {"count": life.count}}})
                take(self._life_key(name), "model", life.values)
        if windows := self._windows:
            windows.count.zero_()
            key = self._sums_key(windows)
            if known(key):
                fill({prefix: {key: {"count": windows.count}}})
                ages = [age for age in range(len(windows)) if known(f"{key}.age_{age}")]
                for age in ages:
                    take(key, f"age_{age}", windows.aged(age, step))
                windows.reach(step, len(ages))

    def _sums_key(self, windows: _Windows) -> str:
        """A name that two share exactly when one can go on as the other."""
        return f"stride_{windows.stride}_every_{self._every}"

    def _life_key(self, name: str) -> str:
        return f"{name}_every_{self._every}"

    @torch.no_grad()
    def _exchange(self, name: str) -> dict[str, Tensor]:
        """Give the parameters the average; what they held."""
        held = {}
        for key, part in self._parts.tensors().items():
            mine = local(part)
            held[key] = mine.clone()
            if self._windows and name in self._windows.lengths:
                mine.copy_(self._windows.mean(name, key, self._step))
            else:
                mine.copy_(local(self._lives[name].values[key]))
        self._parts.written()
        return held

    @torch.no_grad()
    def _put_back(self, held: dict[str, Tensor]) -> None:
        parts = self._parts.tensors()
        for key, values in held.items():
            local(parts[key]).copy_(values)
        self._parts.written()


def _zeros(parts: Parts) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(part, dtype=torch.float32, requires_grad=False)
        for name, part in parts.tensors().items()
    }


def _locals(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(tensor) for tensor in tensors]
