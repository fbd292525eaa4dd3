"""The chunked loss against the plain one, in value, gradient and memory."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm_pretrain.model.loss import IGNORED, Head, chunk_rows, loss_and_gradient, losses_of

B, T, C, V = 3, 7, 16, 53


def made(rows: int | None, dtype: torch.dtype = torch.float64) -> tuple[Head, Tensor, Tensor]:
    """A head, hidden states (B, T, C) that want a gradient, and targets with one to ignore."""
    generator = torch.Generator().manual_seed(3)
    head = Head(C, V).to(dtype)
    head.rows = rows
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, C, generator=generator))
    x = torch.randn(B, T, C, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (B, T), generator=generator)
    targets[1, 2] = IGNORED
    return head, x, targets


def loss_of(head: Head, x: Tensor, targets: Tensor, *, mean: bool = True) -> Tensor:
    """As the model takes it."""
    if head.rows is None:
        return losses_of(head(x), targets, mean=mean)
    losses: Tensor = head(x, targets, mean=mean)
    return losses


def by_definition(weight: Tensor, x: Tensor, targets: Tensor) -> Tensor:
    """-log of the softmax at the target, 0 where there is none."""
    chances = torch.softmax(x @ weight.T, dim=-1)  # (B, T, V)
    counted = targets != IGNORED
    return -torch.log(chances.gather(2, targets.where(counted, 0)[..., None])[..., 0]) * counted


@pytest.mark.parametrize("rows", [None, 1, 4, 7, 21, 100])
def test_mean_and_its_gradients(rows: int | None) -> None:
    head, x, targets = made(rows)
    expected = by_definition(head.weight, x, targets).mean() * 3
    wanted = torch.autograd.grad(expected, [x, head.weight])

    loss = loss_of(head, x, targets) * 3
    found = torch.autograd.grad(loss, [x, head.weight])

    # The losses themselves are float32.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [None, 4, 100])
def test_each_loss_without_a_gradient(rows: int | None) -> None:
    head, x, targets = made(rows)
    with torch.no_grad():
        losses = loss_of(head, x, targets, mean=False)
    assert losses.shape == (B, T)
    assert losses[1, 2] == 0
    torch.testing.assert_close(
        losses.double(), by_definition(head.weight, x, targets), rtol=1e-6, atol=1e-6
    )


def test_without_targets_it_gives_logits() -> None:
    head, x, _ = made(4)
    torch.testing.assert_close(head(x), x @ head.weight.T)


def test_bfloat16_is_as_near_to_the_truth_as_the_plain_loss() -> None:
    head, x, targets = made(None, torch.float32)
    truth = torch.autograd.grad(
        by_definition(head.weight.double(), x.double(), targets).mean(), [x, head.weight]
    )
    errors = {}
    for rows in (None, 4):
        head.rows = rows
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(head, x, targets)
        found = torch.autograd.grad(loss, [x, head.weight])
        errors[rows] = [
            ((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)
        ]
    for plain, chunked in zip(errors[None], errors[4], strict=True):
        assert chunked < 1.2 * plain < 0.02


def test_gradient_of_the_softmax_is_autograds() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, V, generator=generator, requires_grad=True)
    targets = torch.tensor([0, V - 1, 7, IGNORED, 7, 3])
    expected = F.cross_entropy(logits, targets, reduction="none")
    losses, gradient = loss_and_gradient(logits.detach(), targets)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


class Largest(TorchDispatchMode):
    """The most elements that an operation's result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("rows", "most"), [(None, B * T * V), (2, V * C)])
def test_no_tensor_has_all_logits(rows: int | None, most: int) -> None:
    head, x, targets = made(rows)
    with Largest() as seen:
        loss_of(head, x, targets).backward()
    assert seen.elements == most


def test_rows_of_a_chunk_fit_in_its_memory() -> None:
    for vocabulary in (2048, 50304, 128256, 131072):
        rows = chunk_rows(vocabulary)
        assert 128 <= rows <= 4096
        assert 4 * rows * vocabulary <= 2**30
        assert rows % 128 == 0
