"""What one operation counts: bytes of memory traffic, and exchanges that must not be missed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_pretrain.config.layout import Layout
from llm_pretrain.estimate.fake import fake_world
from llm_pretrain.estimate.ledger import Ledger
from llm_pretrain.optim.adamw import AdamW

BYTES = 4 * 1000
"""Of each tensor here."""


def traffic(operation: Callable[..., Any], tensors: int) -> float:
    """Bytes that an operation on some float32 tensors reads and writes."""
    ledger = Ledger()
    with FakeTensorMode(), ledger:
        given = [torch.empty(1000) for _ in range(tensors)]
        ledger.begin("counted")
        operation(*given)
    return ledger.segments[-1].work.traffic


@pytest.mark.parametrize(
    ("operation", "tensors", "moved"),
    [
        (torch.add, 2, 3),
        (torch.Tensor.add_, 2, 3),
        (torch.Tensor.copy_, 2, 2),
        (torch.Tensor.zero_, 1, 1),
        (torch.Tensor.view_as, 2, 0),
        (lambda a, b, to: torch.add(a, b, out=to), 3, 3),
        (lambda a, b: torch._foreach_mul_([a, b], 2.0), 2, 4),
        (lambda a: a.expand(50, 1000).sum(dim=0), 1, 2),
        # Rows that are looked up, not the table.
        (lambda a: torch.embedding(a.view(10, 100), torch.zeros(5, dtype=torch.int64)), 1, 1),
    ],
)
def test_memory_traffic(operation: Callable[..., Any], tensors: int, moved: int) -> None:
    assert traffic(operation, tensors) == pytest.approx(moved * BYTES, abs=50)


def test_an_update_reads_four_tensors_and_writes_three() -> None:
    ledger = Ledger()
    with FakeTensorMode(), ledger:
        parameter = torch.nn.Parameter(torch.empty(1000))
        optimizer = AdamW([{"params": [parameter]}])
        parameter.grad = torch.empty(1000)
        ledger.begin("update")
        optimizer.step()
    assert ledger.segments[-1].work.traffic == pytest.approx(7 * BYTES, abs=50)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("c10d.broadcast_", lambda tensor: dist.broadcast(tensor, src=0)),
        ("c10d.alltoall_base_", lambda tensor: dist.all_to_all_single(tensor.clone(), tensor)),
    ],
)
def test_an_exchange_that_cannot_be_counted_is_no_silence(
    name: str, operation: Callable[[torch.Tensor], Any]
) -> None:
    with (
        fake_world(Layout(shard=2), grouped=True),
        FakeTensorMode(),
        Ledger(),
        pytest.raises(NotImplementedError, match=name),
    ):
        operation(torch.empty(1000))
