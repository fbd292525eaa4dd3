"""Documents in one row train and are judged as if each were alone."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.engine.inputs import Inputs
from tests.engine.zero import alone

END = 3
LENGTHS = (5, 1, 30, 17, 11)
"""Of the documents of a row, their ends of text included; the last has none."""
TOTAL = sum(LENGTHS)
BACKENDS = pytest.mark.parametrize("attention", ["flash", "math"])


def engine(attention: str, *, masked: bool) -> FsdpEngine:
    """Always the same values, of a size that lets attention matter."""
    model = ModelConfig(
        vocab_size=96, width=32, layers=3, heads=2, kv_heads=1, head_dim=16, ffn=48, init_std=0.3
    )
    model = replace(model, attention=attention, document_mask=masked)
    data = DataConfig(global_batch=2, micro_batch=2, sequence_length=TOTAL)
    config = TrainConfig(model=model, data=data, engine=EngineConfig(loss="plain"))
    built = build_engine(config, alone(), end_of_text=END)
    assert isinstance(built, FsdpEngine)
    return built


def documents(seed: int) -> list[Tensor]:
    """Random tokens that are no end, and one at the end of each but the last."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randint(END + 1, 96, (length,), generator=generator) for length in LENGTHS]
    for document in found[:-1]:
        document[-1] = END
    return found


def packed(parts: list[Tensor]) -> Tensor:
    """A row of (TOTAL + 1); its last token is the target of the one before."""
    return torch.cat([*parts, torch.tensor([7])])


def losses(of: FsdpEngine, rows: Tensor) -> Tensor:
    """Of each position: (B, T + 1) -> (B, T)."""
    with torch.no_grad():
        found: Tensor = of.model(*Inputs.of(rows, of._end_of_text, alone()))
    return found


@BACKENDS
def test_a_row_has_the_losses_of_its_documents(attention: str) -> None:
    """The truth: a document and the token after it, alone, by a model that masks nothing."""
    together, apart = engine(attention, masked=True), engine(attention, masked=False)
    rows = torch.stack([packed(documents(seed)) for seed in (1, 2)])
    means = []
    for row in rows:
        bounds = [sum(LENGTHS[:i]) for i in range(len(LENGTHS) + 1)]
        each = [
            apart.evaluate(row[None, first : last + 1]).item() * (last - first)
            for first, last in itertools.pairwise(bounds)
        ]
        means.append(sum(each) / TOTAL)
    assert together.evaluate(rows).tolist() == pytest.approx(means, rel=2e-6)
    assert apart.evaluate(rows).tolist() != pytest.approx(means, rel=1e-3)


@BACKENDS
def test_earlier_documents_have_no_influence(attention: str) -> None:
    of, across = engine(attention, masked=True), engine(attention, masked=False)
    same = documents(1)[3:]
    rows = torch.stack([packed([*documents(seed)[:3], *same]) for seed in (1, 2)])
    begin = sum(LENGTHS[:3])
    first, second = losses(of, rows)
    assert torch.equal(first[begin:], second[begin:])
    assert not torch.equal(first[:begin], second[:begin])
    first, second = losses(across, rows)
    assert not torch.isclose(first[begin:], second[begin:], rtol=1e-3).any()


@BACKENDS
def test_gradients_are_those_of_the_documents(attention: str) -> None:
    together, apart = engine(attention, masked=True), engine(attention, masked=False)
    row, begin = packed(documents(5))[None], 0
    together.forward_backward(row, weight=1.0, last=True)
    for length in LENGTHS:
        part = row[:, begin : begin + length + 1]
        apart.forward_backward(part, weight=length / TOTAL, last=begin + length == TOTAL)
        begin += length
    others = dict(apart.model.named_parameters())
    for name, parameter in together.model.named_parameters():
        mine, theirs = parameter.grad, others[name].grad
        assert mine is not None and theirs is not None
        error = torch.linalg.vector_norm(mine - theirs) / torch.linalg.vector_norm(theirs)
        assert error < 1e-5, name


def test_without_a_mask_ends_of_text_mean_nothing() -> None:
    """`build_engine` is told of them in every run."""
    assert engine("flash", masked=False)._end_of_text is None
    assert engine("flash", masked=True)._end_of_text == END
