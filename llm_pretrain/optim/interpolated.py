"""The average of the schedule-free rules, which follows from the two points that they keep."""

from collections import defaultdict
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_pretrain.optim.base import like
from llm_pretrain.parts import local


class _HasPoints(Protocol):
    state: "defaultdict[Tensor, Any]"
    shared: dict[str, Tensor]


class Interpolated:
    """For rules whose parameter is y = beta x + (1 - beta) z, with z in their state and the beta
    of the present y as `shared["interpolation"]`, in host memory."""

    @torch.no_grad()
    def readout(self: _HasPoints, parameter: Tensor) -> Tensor:
        """x, a new tensor; y is left as it is."""
        z = local(self.state[parameter]["z"])
        beta = float(self.shared["interpolation"].numpy())
        return like(parameter, torch.lerp(local(parameter), z, 1 - 1 / beta))
