"""Activations in host memory: the same gradients, each tensor sent once, nothing held too long."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.engine.offload import ActivationOffload
from tests.engine.zero import alone

CPU = torch.device("cpu")
MODEL = ModelConfig(
    vocab_size=64, width=64, layers=4, heads=2, kv_heads=1, head_dim=32, ffn=256, attention="flash"
)
BATCH, LENGTH = 2, 48


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small models send, too: all but the tables of RoPE's size and less."""
    monkeypatch.setattr(ActivationOffload, "LEAST", BATCH * LENGTH * MODEL.width * 4)
    yield


def engine(*, offload: bool, model: ModelConfig = MODEL) -> FsdpEngine:
    data = DataConfig(global_batch=BATCH, micro_batch=BATCH, sequence_length=LENGTH)
    asked = EngineConfig(offload_activations=offload, loss="plain")
    return FsdpEngine(TrainConfig(model=model, data=data, engine=asked), alone())


def offloader(of: FsdpEngine) -> ActivationOffload:
    around = of.model.around
    assert isinstance(around, ActivationOffload)
    return around


def batch(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(MODEL.vocab_size, (BATCH, LENGTH + 1), generator=generator)


def gradients(of: FsdpEngine) -> dict[str, Tensor]:
    of.forward_backward(batch(), weight=1.0, last=True)
    return {name: p.grad for name, p in of.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(MODEL, id="four blocks"),
        pytest.param(replace(MODEL, qk_norm=True, tied_embeddings=False), id="norms of heads"),
        pytest.param(replace(MODEL, attention="math"), id="math"),
        pytest.param(replace(MODEL, layers=1), id="one block"),
    ],
)
def test_gradients_are_the_same_to_the_last_bit(model: ModelConfig) -> None:
    kept, sent = engine(offload=False, model=model), engine(offload=True, model=model)
    mine, theirs = gradients(sent), gradients(kept)
    assert list(mine) == list(theirs) == list(dict(kept.model.named_parameters()))
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert [len(k.host) > 0 for k in offloader(sent)._blocks] == [True] * (model.layers - 1)


def test_a_block_sends_each_of_its_large_tensors_once() -> None:
    """As much memory as is saved without it, though queries, keys and values share their input."""
    saved: list[Tensor] = []
    of = engine(offload=False)
    block, x = of.model.blocks[0], torch.randn(BATCH, LENGTH, MODEL.width, requires_grad=True)
    positions = _positions(of, x)
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        block(x, positions).sum().backward()
    parameters = {p.data_ptr() for p in of.model.parameters()}
    large = [t for t in saved if t.nbytes >= ActivationOffload.LEAST]
    large = [t for t in large if t.data_ptr() not in parameters]
    different = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in large}
    assert len(different) < len(large)
    around = ActivationOffload(2, CPU)
    with around(0):
        y = block(x, positions)
    sent = [t.nbytes for t in around._blocks[0].host]
    assert sorted(sent) == sorted(different.values())
    y.sum().backward()


def _positions(of: FsdpEngine, x: Tensor) -> object:
    """What the model gives to its first block."""
    seen: list[object] = []
    handle = of.model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    of.model(torch.zeros(x.shape[:2], dtype=torch.int64))
    handle.remove()
    return seen[0]


def test_the_last_block_sends_nothing() -> None:
    of = engine(offload=True)
    gradients(of)
    assert len(offloader(of)._blocks) == MODEL.layers - 1


def test_parameters_are_never_sent() -> None:
    """Neither themselves nor views of them, though they are as large as what is sent."""
    weight = nn.Parameter(torch.randn(256, 256))
    x = torch.randn(256, 256)
    around = ActivationOffload(2, CPU)
    with around(0):
        y = (x @ weight) @ weight.t()
    assert weight.nbytes >= ActivationOffload.LEAST
    first, second = (t.view(256, 256) for t in around._blocks[0].host)
    assert torch.equal(first, x)
    assert torch.equal(second, x @ weight)
    y.sum().backward()
    assert weight.grad is not None


def test_nothing_is_sent_without_gradients() -> None:
    of = engine(offload=True)
    of.evaluate(batch())
    assert offloader(of)._blocks == []


def test_activations_leave_the_device_when_their_block_is_done() -> None:
    """And the copies go when the pass after is over, but for those of its own blocks."""
    around = ActivationOffload(3, CPU)
    size = (ActivationOffload.LEAST // 4,)
    x, refs = torch.ones(size, requires_grad=True), []
    for index in range(2):
        with around(index):
            middle = x * 2
            refs.append(weakref.ref(middle))
            x = middle.exp()
            refs.append(weakref.ref(x))
        del middle
    last = x.sum()
    del x
    gc.collect()
    assert [ref() is None for ref in refs] == [True] * len(refs)
    hosts = [weakref.ref(t) for kept in around._blocks for t in kept.host]
    assert len(hosts) == 2
    last.backward()
    del last
    with around(0):
        pass
    gc.collect()
    assert [ref() is None for ref in hosts] == [True] * len(hosts)


def test_two_passes_before_the_gradients_are_used() -> None:
    """Micro-batches that follow each other hold their own copies only."""
    sent, kept = engine(offload=True), engine(offload=False)
    for of in (sent, kept):
        for seed in range(3):
            of.forward_backward(batch(seed), weight=1 / 3, last=seed == 2)
    pairs = zip(sent.model.parameters(), kept.model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
