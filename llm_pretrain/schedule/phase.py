"""One stretch of a schedule, in which one formula gives the multiplier."""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from llm_pretrain.schedule import shapes

Kind = Literal["warmup", "rewarmup", "constant", "ramp", "curve", "cooldown", "hold"]
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Phase:
    """A stretch of the schedule; update u in it has progress p = (u - start) / length.

    The multiplier goes from `first` (at p = 0) towards `last`, which the update after the phase
    would have.
    """

    kind: Kind
    """curve: a main phase that is not constant. hold: after a cooldown."""
    start: int
    length: int
    first: float
    last: float
    shape: str
    """One of shapes.py, or a function of the user's: module:name."""
    peak: float
    """Learning rate that the multiplier multiplies."""
    parameter: float = 0.0
    """Exponent of a power; timescale or half-life in steps; else unused."""

    @property
    def end(self) -> int:
        """First step after the phase."""
        return self.start + self.length

    @property
    def open(self) -> bool:
        """Whether its rates do not depend on its end, so that it may be moved."""
        return self.kind in ("constant", "curve")

    def multiplier(self, step: int) -> float:
        """The multiplier of the 0-based update `step`, also when the phase was cut short."""
        if ":" in self.shape:
            return shapes.function(self.shape)(step)
        return float(self._value(step - self.start, math))

    def multipliers(self, end: int) -> Array:
        """The multipliers of its updates before step `end`."""
        if ":" in self.shape:
            own = shapes.function(self.shape)
            return np.array([own(step) for step in range(self.start, end)], dtype=np.float64)
        values: Array = self._value(np.arange(end - self.start, dtype=np.float64), np)
        return values

    def _value(self, done: Any, m: ModuleType) -> Any:
        """The multiplier after `done` updates of the phase, a number or an array.

        Additive shapes give last + (first - last) g(p) with p = done / length, "power" with
        g = 1 - p^parameter (Hägele et al. 2024, section 4). "exponential" gives
        first (last / first)^p, which is the paper's f^p for first = 1 and floor f. "half-life"
        gives first 0.5^(done / parameter) (Hu et al. 2024, MiniCPM), "inverse-sqrt"
        first sqrt(parameter / (parameter + done)) (Vaswani et al. 2017), whatever `last`.
        """
        if self.shape == "half-life":
            return self.first * 0.5 ** (done / self.parameter)
        if self.shape == "inverse-sqrt":
            return self.first * m.sqrt(self.parameter / (self.parameter + done))
        p = done / self.length
        if self.shape == "exponential":
            return self.first * (self.last / self.first) ** p
        share = 1 - p**self.parameter if self.shape == "power" else shapes.FALLS[self.shape](p, m)
        return self.last + (self.first - self.last) * share
