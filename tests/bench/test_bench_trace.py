"""From a profiler's trace to parts, phases and waits: hand-made traces, and the real profiler."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from llm_pretrain.bench.profile import dissect, profiled
from llm_pretrain.bench.step import STEP, UPDATE, Stepper
from llm_pretrain.bench.trace import Span, Trace, exclusive, innermost
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.engine.base import Engine
from llm_pretrain.engine.choices import settle
from llm_pretrain.world import World

MAIN, AUTOGRAD = 1, 2
BACKWARD = "autograd::engine::evaluate_function: MmBackward0"


def host(name: str, start: int, end: int, tid: int = MAIN, cat: str = "cpu_op") -> dict[str, Any]:
    """An event on a thread of the host, in microseconds, as Kineto writes it."""
    return {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": tid, "ts": start,
            "dur": end - start, "args": {}}  # fmt: skip


def call(name: str, start: int, number: int, tid: int = MAIN) -> dict[str, Any]:
    """A call of the CUDA runtime."""
    event = host(name, start, start + 1, tid, "cuda_runtime")
    return {**event, "args": {"correlation": number}}


def kernel(name: str, start: int, end: int, number: int, cat: str = "kernel") -> dict[str, Any]:
    """What a call made the device do."""
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": 20, "ts": start,
            "dur": end - start, "args": {"correlation": number, "stream": 20}}  # fmt: skip


GPU = [
    host("before", 0, 50, cat="user_annotation"),
    host(STEP, 100, 300, cat="user_annotation"),
    host(UPDATE, 250, 299, cat="user_annotation"),
    # Forward: a copy to the device, a product, attention, and what the compiler fused with that.
    call("cudaMemcpyAsync", 101, 1),
    kernel("Memcpy HtoD (Pinned -> Device)", 102, 112, 1, "gpu_memcpy"),
    host("aten::linear", 110, 130),
    host("aten::mm", 112, 125),
    call("cudaLaunchKernel", 115, 2),
    kernel("nvjet_tst_128x256", 120, 150, 2),
    host("aten::scaled_dot_product_attention", 130, 150),
    host("aten::_scaled_dot_product_cudnn_attention", 132, 149),
    call("cuLaunchKernelEx", 135, 3) | {"cat": "cuda_driver"},
    kernel("cudnn_generated_fort_native_sdpa_sm90", 150, 190, 3),
    call("cuLaunchKernel", 151, 4) | {"cat": "cuda_driver"},
    kernel("triton_poi_fused__scaled_dot_product_cudnn_attention_clone_2", 190, 200, 4),
    # Backward, on a thread of its own, while ranks exchange.
    host(BACKWARD, 160, 200, AUTOGRAD),
    host("aten::mm", 165, 190, AUTOGRAD),
    call("cudaLaunchKernel", 170, 5, AUTOGRAD),
    kernel("nvjet_tst_64x64", 200, 260, 5),
    host("c10d::_reduce_scatter_base_", 191, 199, AUTOGRAD),
    call("cudaLaunchKernel", 192, 6, AUTOGRAD),
    kernel("ncclDevKernel_ReduceScatter_Sum_f32", 230, 280, 6),
    # Update: the optimizer, and somebody who wants a number at once.
    host("aten::_fused_adamw_", 255, 270),
    call("cudaLaunchKernel", 260, 7),
    kernel("multi_tensor_apply_kernel", 300, 340, 7),
    host("aten::item", 280, 296),
    host("aten::_local_scalar_dense", 281, 295),
    call("cudaMemcpyAsync", 282, 8),
    kernel("Memcpy DtoH (Device -> Pageable)", 340, 342, 8, "gpu_memcpy"),
    call("cudaStreamSynchronize", 284, 9),
    # After the step: the profiler waits, which is no part of it.
    call("cudaDeviceSynchronize", 305, 10),
    {"ph": "i", "cat": "cpu_op", "name": "an instant", "pid": 7, "tid": 1, "ts": 1},
]


def test_a_step_on_a_gpu() -> None:
    found = dissect(Trace.of(GPU), "cuda")
    microseconds = {name: round(s * 1e6, 6) for name, s in found.parts.items() if s > 0}
    assert microseconds == {
        "matrix products": 30 + 60,
        "attention": 40,
        "norms, elementwise and the rest": 10,
        "communication": 20,  # of 50, 30 behind the product
        "optimizer update": 40,
        "copies between host and device": 10 + 2,
    }
    assert found.hidden == pytest.approx(30e-6)
    assert found.wall == pytest.approx(242e-6)  # 100 to 342
    assert found.busy == pytest.approx(212e-6)
    assert found.idle == pytest.approx(30e-6)  # 100-102, 112-120, 280-300
    phases = {name: round(s * 1e6, 6) for name, s in found.phases.items() if s > 0}
    assert phases == {"forward": 90, "backward": 80, "update": 42}


def test_waits_on_a_gpu_are_counted_once_and_placed() -> None:
    found = dissect(Trace.of(GPU), "cuda")
    place = "cudaStreamSynchronize < aten::_local_scalar_dense < bench: update"
    assert found.waits == {place: 1}


def test_a_kernel_that_nobody_launched_has_no_phase() -> None:
    lost = [e for e in GPU if e.get("args", {}).get("correlation") != 2 or e["cat"] == "kernel"]
    found = dissect(Trace.of(lost), "cuda")
    assert found.phases["unknown"] == pytest.approx(30e-6)
    # Its name tells what it is.
    assert found.parts["matrix products"] == pytest.approx(90e-6)


@pytest.mark.parametrize("asked", [0, 3])
def test_the_real_profiler_sees_each_value_that_is_asked_for(asked: int) -> None:
    x = torch.randn(64, 64, requires_grad=True)

    def step() -> None:
        with record_function(STEP):
            (x @ x).sum().backward()
            for _ in range(asked):
                x[0, 0].item()
            with record_function(UPDATE):
                x.grad = None

    found = profiled(step, torch.device("cpu"))
    assert sum(found.waits.values()) == asked
    assert found.parts["matrix products"] > 0
    assert found.phases["forward"] > 0 < found.phases["backward"]
    assert sum(found.parts.values()) == pytest.approx(found.busy)
    assert 0 < found.busy <= found.wall


class Asking:
    """An engine that looks at the loss of every pass."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.step = engine.step

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        loss = self._engine.forward_backward(tokens, weight=weight, last=last)
        assert loss.item() > 0
        return loss


def test_an_engine_that_looks_at_the_loss_is_found_out() -> None:
    world = World(0, Layout(), torch.device("cpu"))
    batch = ["data.sequence_length=16", "data.micro_batch=2", "data.global_batch=6"]
    config = settle(compose(["model.layers=1", *batch]), world).config
    plain = Stepper(config, world)
    asking: Any = Asking(plain.engine)
    found = profiled(Stepper(config, world, engine=asking).step, world.device)
    assert found.waits == {"aten::_local_scalar_dense": 3}
    assert profiled(plain.step, world.device).waits == {}


def test_what_ends_when_another_begins_is_not_around_it() -> None:
    # As floats, 1000.1 + 0.2 is more than 1000.3.
    first, second = host("first", 0, 0), host("second", 0, 0)
    first |= {"ts": 1000.1, "dur": 0.2}
    second |= {"ts": 1000.3, "dur": 0.1}
    assert [span.callers for span in Trace.of([first, second]).host] == [(), ()]


def test_moments_count_once_for_the_first_in_rank() -> None:
    draw = random.Random(3)
    for _ in range(50):
        pieces = []
        for _ in range(draw.randint(0, 12)):
            start = draw.randint(0, 30)
            pieces.append((float(start), float(start + draw.randint(0, 10)), draw.choice("abc")))
        expected: Counter[str] = Counter()
        for tick in range(45):
            running = [key for start, end, key in pieces if start <= tick < end]
            if running:
                expected[min(running)] += 1
        assert exclusive(pieces, ord) == expected


def test_each_moment_of_a_thread_belongs_to_the_innermost() -> None:
    def span(name: str, start: int, end: int) -> Span:
        return Span(name, "cpu_op", start, end, "1", ())

    spans = [span("a", 0, 10), span("b", 2, 6), span("c", 3, 4), span("d", 6, 7), span("e", 12, 13)]
    times: Counter[str] = Counter()
    for start, end, inner in innermost(spans):
        times[inner.name] += round(end - start)
    assert times == {"a": 5, "b": 3, "c": 1, "d": 1, "e": 1}
