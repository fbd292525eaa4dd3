"""What a step does besides arithmetic: it compiles once, and never waits for the device."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.schema import LoggerConfig, ModelConfig, TrainConfig
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.fsdp import FsdpEngine
from tests.engine.zero import alone

END = 3
MICRO, LENGTH = 2, 321
"""Chunks of the chunked loss do not divide it."""


def engine(*, layers: int, masked: bool, **options: Any) -> FsdpEngine:
    model = ModelConfig(
        vocab_size=96,
        width=32,
        layers=layers,
        heads=2,
        kv_heads=1,
        head_dim=16,
        ffn=48,
        attention="flash",
        document_mask=masked,
    )
    data = DataConfig(global_batch=2 * MICRO, micro_batch=MICRO, sequence_length=LENGTH)
    config = TrainConfig(
        model=model,
        data=data,
        engine=EngineConfig(**options),
        logger=LoggerConfig(kurtosis=masked),
    )
    built = build_engine(config, alone(), end_of_text=END)
    assert isinstance(built, FsdpEngine)
    return built


def batch(number: int) -> Tensor:
    """With other documents in every call, of other numbers."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(96 // (1 + number % 3), (MICRO, LENGTH + 1), generator=generator)


def step(of: FsdpEngine, number: int) -> None:
    for i in range(2):
        of.forward_backward(batch(2 * number + i), weight=0.5, last=i == 1)
    of.step(1e-3)


def compiled() -> int:
    """Graphs so far."""
    count: int = counters["stats"]["unique_graphs"]
    return count


@pytest.fixture
def fresh_compiler() -> Any:
    """What others compiled in this process neither helps nor harms."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_nothing_is_compiled_after_the_first_step() -> None:
    """But for the first evaluation, whose blocks have no backward pass.

    Ten blocks share what is compiled: torch gives up on a function after eight times.
    """
    of = engine(layers=10, masked=True, compile=True, recompute="selective", loss="chunked")
    step(of, 0)
    # A block, and the loss of a whole chunk and of the last one.
    assert compiled() == 3
    with torch.compiler.set_stance("fail_on_recompile"):
        step(of, 1)
        step(of, 2)
    before = compiled()
    of.evaluate(batch(0))
    assert compiled() == before + 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in range(3, 6):
            step(of, number)
            of.evaluate(batch(number))
    assert compiled() == before + 1
    assert counters["graph_break"] == {}


WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")


def waits(seen: profile) -> Counter[str]:
    """What read a tensor's value on the host, and how often."""
    found: Counter[str] = Counter()
    for event in seen.events():
        above = event.cpu_parent
        while above is not None and above.name != "aten::_fused_adamw_":
            above = above.cpu_parent
        # On a CPU this kernel itself reads how many updates there were; on CUDA the device does.
        if event.name in WAITS and above is None:
            found[event.name] += 1
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "plain"},
        {"loss": "chunked", "recompute": "selective"},
        {"loss": "chunked", "offload_activations": True},
    ],
    ids=lambda options: ", ".join(f"{k}={v}" for k, v in options.items()),
)
def test_no_number_is_asked_of_the_device(options: dict[str, Any], masked: bool) -> None:
    """The host would wait for all kernels before, and the device then for the host.

    `nonzero` asks too; the one there is finds documents in the host's own memory.
    """
    of = engine(layers=2, masked=masked, **options)
    step(of, 0)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(of, 1)
    assert waits(seen) == {}
    names = Counter(event.name for event in seen.events())
    assert names["aten::_fused_adamw_"] > 0
    assert names["aten::nonzero"] == (2 if masked else 0)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        of.forward_backward(batch(5), weight=1.0, last=True).item()
        of.step(1e-3)
    assert waits(seen) == {"aten::item": 1, "aten::_local_scalar_dense": 1}
