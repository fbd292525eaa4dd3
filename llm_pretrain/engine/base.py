"""What the training loop may ask of an engine."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

State = dict[str, Any]
"""Nested dict of this rank's tensors under the model's own parameter names: 'model' and
'optimizer', and with delayed scaling of FP8 'fp8', the same on every rank. A leaf is a tensor (a
DTensor where it is a part of a larger one), or a function without arguments that makes one when it
is called, in the same order on every rank. A plain tensor that a function makes is the same on
every rank."""


class Engine(Protocol):
    """Places model and optimizer on the devices and trains them; all ranks call together."""

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        """Accumulate gradients of `weight` times the mean loss of a micro-batch.

        tokens: (micro_batch, T + 1) in host memory, inputs and shifted targets in one. `last`: no
        micro-batch follows before `step`, so gradients may be reduced. Returns this rank's weighted
        loss.
        """
        ...

    def step(self, lr: float) -> torch.Tensor:
        """Clip to the config's `grad_clip`, update at `lr`, drop gradients.

        Returns the global gradient norm before clipping.
        """
        ...

    def evaluate(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss of each sequence, in nats per token: (B, T + 1) in host memory -> (B,)."""
        ...

    def kurtosis(self) -> torch.Tensor | None:
        """Of each block's output in this rank's last pass (L,), if config.logger asks for it."""
        ...

    def state(self) -> State:
        """The training state, for a save to copy.

        Learning rate and other hyperparameters are not state: they come from the config.
        """
        ...

    def load(self, fill: Callable[[State], None]) -> None:
        """Take over a state: `fill` puts a checkpoint's values into the tensors it is given."""
        ...
