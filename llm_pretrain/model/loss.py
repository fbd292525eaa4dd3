"""The output head and its loss, with all logits at once or a few rows of them at a time.

Dimensions: N positions of all sequences in a row, C width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

IGNORED = -100
"""A target that counts as loss 0."""
CHUNK_BYTES = 2**30
"""Of the float32 logits that the chunked loss has at a time. After each chunk the whole weight's
gradient goes through memory once, which should be little beside the chunk's products: with 128k
rows and 2048 positions it is a fifth of an H100's time for them, by its rates."""
_MOST_ROWS = 4096


def chunk_rows(vocab_size: int) -> int:
    """Positions whose logits the chunked loss makes at a time."""
    rows = CHUNK_BYTES // (4 * vocab_size)
    return min(_MOST_ROWS, max(128, rows // 128 * 128))


class Head(nn.Linear):
    """Logits of the hidden states, or the loss straight from them."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__(width, vocab_size, bias=False)
        self.rows: int | None = None
        """Positions at a time in the loss; None: the loss is made of all logits, by `losses_of`."""
        self.gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = loss_and_gradient
        """What the chunked loss does with logits; a place to put a compiled one."""

    def forward(self, x: Tensor, targets: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """Hidden states (B, T, C) -> logits (B, T, V), or with targets (B, T) the chunked loss.

        The loss is in nats and float32: (B, T), or with `mean` the mean, a scalar.
        """
        if targets is None:
            return F.linear(x, self.weight)
        assert self.rows is not None
        states, flat = x.flatten(0, 1), targets.flatten()  # (N, C), (N,)
        if mean and torch.is_grad_enabled():
            total: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
                states, self.weight, flat, (self.rows, self.gradient)
            )
            return total / flat.numel()
        parts = zip(torch.split(states, self.rows), torch.split(flat, self.rows), strict=True)
        losses = torch.cat([_losses(F.linear(part, self.weight), own) for part, own in parts])
        return losses.mean() if mean else losses.view_as(targets)


def losses_of(logits: Tensor, targets: Tensor, *, mean: bool) -> Tensor:
    """Logits (B, T, V) and targets (B, T) -> nats in float32: (B, T), or with `mean` a scalar."""
    # Class dimension second, (B, V, T), would be strided; flat rows are not.
    losses = _losses(logits.flatten(0, 1), targets.flatten())
    # A copy, since FSDP's backward hooks do not survive in-place operations on a view.
    return losses.mean() if mean else losses.view_as(targets).clone()


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V) and (N,) -> (N,)."""
    return F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=IGNORED)


class _ChunkedLoss(torch.autograd.Function):
    """The sum of all positions' losses. The forward pass makes the gradients too.

    A sum's gradient does not depend on what follows it but for a factor, so a chunk's logits need
    not be kept, nor be made a second time: Liger and Cut Cross-Entropy rest on the same.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        how: tuple[int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]],
    ) -> Tensor:
        rows, gradient = how
        dtype = product_dtype(x)
        matrix = weight.to(dtype)  # (V, C)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        x_gradient = torch.empty_like(x)
        # In float32 whatever the weight is, since it adds up over the chunks.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        chunks = zip(*(torch.split(t, rows) for t in (x, targets, x_gradient)), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            for part, wanted, into in chunks:
                hidden = part.to(dtype)  # (n, C)
                losses, logits_gradient = gradient(hidden @ matrix.t(), wanted)  # (n,), (n, V)
                total += losses.sum()
                into.copy_(logits_gradient @ matrix)
                weight_gradient += logits_gradient.t() @ hidden
        ctx.save_for_backward(x_gradient, weight_gradient)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_gradient, weight_gradient = ctx.saved_tensors
        # In place: nobody else has them, and the weight's is as large as the vocabulary.
        x_gradient.mul_(gradients[0])
        weight_gradient.mul_(gradients[0])
        return x_gradient, weight_gradient.to(ctx.dtype), None, None


def loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (n,) in float32, and of their sum the gradient in the dtype of the logits (n, V)."""
    counted = targets != IGNORED
    index = torch.where(counted, targets, 0)[:, None]  # (n, 1)
    logs = torch.log_softmax(logits, dim=1, dtype=torch.float32)  # (n, V)
    losses = -logs.gather(1, index).squeeze(1) * counted
    chances = logs.exp_()
    chances.scatter_add_(1, index, chances.new_full(index.shape, -1.0))
    # Rounded on the way: one pass over memory less.
    gradient = torch.empty_like(logits)
    torch.mul(chances, counted[:, None], out=gradient)
    return losses, gradient


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of `x` is done here: autocast's, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
