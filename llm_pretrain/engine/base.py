"""What the training loop may ask of an engine."""

from typing import Any, Protocol

import torch


class Engine(Protocol):
    """Places model and optimizer on the devices and trains them; all ranks call together."""

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        """Accumulate gradients of `weight` times the mean loss of a micro-batch.

        tokens: (micro_batch, T + 1), inputs and shifted targets in one. `last`: no micro-batch
        follows before `step`, so gradients may be reduced. Returns this rank's weighted loss.
        """
        ...

    def step(self, lr: float, max_norm: float) -> torch.Tensor:
        """Clip to `max_norm` (0: do not), update at `lr`, drop gradients.

        Returns the global gradient norm before clipping.
        """
        ...

    def evaluate(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss of each sequence, in nats per token: (B, T + 1) -> (B,)."""
        ...

    def state(self) -> dict[str, Any]:
        """Live tensors under the model's own parameter names: 'model' and 'optimizer'.

        A save copies them, a load fills them in place. Learning rate and other hyperparameters
        are not state: they come from the config.
        """
        ...
