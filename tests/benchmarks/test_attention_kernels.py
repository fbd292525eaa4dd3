"""What the benchmark of attention kernels reports."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import attention
from benchmarks.attention import Case, largest, measure_case, numerics
from llm_pretrain.engine.trial import KERNELS, Sample, Shape
from llm_pretrain.model.attention import ScaledDotProduct, backend

CPU = torch.device("cpu")
SHAPE = Shape(batch=2, length=33, heads=4, kv_heads=2, head_dim=8)


def test_operations_are_those_of_visible_pairs() -> None:
    """Counted pair by pair: 2 D for the score, 2 D for the value, in each head of each row."""
    counted = 0
    for _row in range(SHAPE.batch):
        for query in range(SHAPE.length):
            for _key in range(query + 1):
                counted += SHAPE.heads * 4 * SHAPE.head_dim
    for masked in (False, True):
        assert Case(SHAPE, masked).tera_operations * 1e12 == pytest.approx(counted)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["flash", "math"])
def test_numerics_of_right_kernels(name: str, masked: bool) -> None:
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        found = numerics(backend(name), CPU, dtype, SHAPE, masked)
        assert list(found) == ["output", "dq", "dk", "dv"]
        assert all(1e-9 < error < most for error in found.values()), found


class Lazy(ScaledDotProduct):
    """Writes only the first half of its output, into memory as it finds it."""

    def __init__(self) -> None:
        super().__init__("lazy", torch.nn.attention.SDPBackend.MATH)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """As `Backend` says, but for the half."""
        y = super().__call__(q, k, v, mask)
        written = torch.empty_like(q)
        written[:, : q.shape[1] // 2] = y[:, : q.shape[1] // 2]
        return y + (written - y).detach()


def test_numerics_of_a_kernel_that_leaves_memory_unwritten() -> None:
    found = numerics(Lazy(), CPU, torch.float32, SHAPE, False)
    assert not found["output"] < 0.1
    assert found["dv"] < 1e-6


def test_nan_is_the_largest() -> None:
    assert math.isnan(largest([1.0, math.nan, 2.0]))
    assert largest([1.0, 3.0, 2.0]) == 3.0


def test_what_cannot_run_is_left_out_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    attention.main(["--quick"])
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    left_out = dict(entry.split(": ", 1) for entry in facts["left_out"].split("; "))
    ran = [entry.split()[0] for entry in facts["largest_relative_errors"].split(", ")]
    assert sorted([*left_out, *ran]) == sorted(KERNELS)
    for name in ran:
        rows = [row for row in facts["rows"] if row["what"].endswith(f": {name}")]
        assert len(rows) % 4 == 0, rows
        assert rows


def test_kernels_are_compared_with_the_base() -> None:
    case = Case(SHAPE, True)
    sample = Sample.of(SHAPE, CPU, torch.float32, masked=True)
    rows = measure_case(case, [backend("flash"), backend("math")], sample, turns=2)
    by_name = {row.what: list(row.samples) for row in rows}
    for passes in ("forward", "both passes"):
        what = f"T 33, D 8, documents, {passes}"
        flash, math_ = by_name[f"{what}: flash"], by_name[f"{what}: math"]
        assert by_name[f"{what}: math / flash"] == [
            b / a for a, b in zip(flash, math_, strict=True)
        ]
    assert len(rows) == 6
