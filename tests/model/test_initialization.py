"""How a model starts: its values, and that meta devices and sharding keep them and the tie."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=131, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=48, init_std=0.2
)


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.initialize(seed)
    return model


def some_tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.vocab_size, (batch, length), generator=generator)


class TestInitialization:
    def test_statistics(self) -> None:
        config = replace(CONFIG, width=256, head_dim=64, ffn=512, layers=8, vocab_size=2000)
        config = replace(config, init_std=0.02, tied_embeddings=False, qk_norm=True)
        values = dict(Transformer(config).initial_values(0))
        assert all(value.dtype == torch.float32 for value in values.values())
        for name, value in values.items():
            if "norm" in name:
                assert torch.equal(value, torch.ones_like(value)), name
                continue
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / 4 if residual else 0.02  # sqrt(2 * 8 layers) = 4
            error = 5 / math.sqrt(2 * value.numel())  # five standard errors
            assert value.std().item() == pytest.approx(std, rel=error), name
            assert abs(value.mean().item()) < 5 * std / math.sqrt(value.numel()), name
            kurtosis = (value / std).pow(4).mean().item()
            assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(96 / value.numel())), name

    def test_depends_on_the_seed_alone(self) -> None:
        torch.manual_seed(1)
        first = build(seed=5).state_dict()
        torch.manual_seed(2)
        second = build(seed=5).state_dict()
        other = build(seed=6).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["embedding.weight"], other["embedding.weight"])

    def test_leaves_the_global_generator_alone(self) -> None:
        model = Transformer(CONFIG)
        state = torch.get_rng_state()
        model.initialize(0)
        assert torch.equal(torch.get_rng_state(), state)

    def test_names_and_values_are_those_of_the_parameters(self) -> None:
        model = build(seed=4)
        values = list(model.initial_values(4))
        parameters = dict(model.named_parameters())
        assert [name for name, _ in values] == sorted(parameters)
        assert all(torch.equal(parameters[name], value) for name, value in values)

    def test_loss_at_the_start_is_that_of_a_guess(self) -> None:
        model, tokens = build(replace(CONFIG, init_std=0.02)), some_tokens(4, 32)
        assert model(tokens, some_tokens(4, 32, seed=2)).mean().item() == pytest.approx(
            math.log(CONFIG.vocab_size), rel=0.01
        )


class TestMetaDevice:
    @pytest.mark.parametrize("tied", [True, False])
    def test_materialized_model_equals_the_plain_one(self, tied: bool) -> None:
        config = replace(CONFIG, tied_embeddings=tied)
        with torch.device("meta"):
            model = Transformer(config)
        model.to_empty(device="cpu")
        assert (model.head.weight is model.embedding.weight) == tied
        assert len(list(model.parameters())) == 2 + 9 * config.layers + (not tied)
        model.initialize(0)
        tokens = some_tokens(2, 9)
        assert torch.equal(model(tokens), build(config)(tokens))

    def test_tie_survives_loading_and_conversion(self) -> None:
        model = Transformer(CONFIG)
        model.load_state_dict(build(seed=3).state_dict())
        assert model.double().head.weight is model.embedding.weight
        assert model.head.weight.dtype == torch.float64

    def test_state_is_parameters_only(self) -> None:
        model = Transformer(CONFIG)
        assert not list(model.buffers())
        assert set(model.state_dict()) == {"head.weight", *dict(model.named_parameters())}


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("tied", [True, False])
def test_sharding_keeps_the_function_and_the_tie(tied: bool) -> None:
    config = replace(CONFIG, tied_embeddings=tied)
    with torch.device("meta"):
        model = Transformer(config)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cpu")
    assert (model.head.weight is model.embedding.weight) == tied
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in model.initial_values(0):
            shard = parameters[name]
            assert isinstance(shard, DTensor)
            shard.to_local().copy_(value)
    plain, tokens = build(config), some_tokens(2, 9)
    torch.testing.assert_close(model(tokens, tokens), plain(tokens, tokens))
    model(tokens, tokens).mean().backward()
    plain(tokens, tokens).mean().backward()
    for name, parameter in plain.named_parameters():
        gradient = parameters[name].grad
        assert isinstance(gradient, DTensor)
        torch.testing.assert_close(gradient.full_tensor(), parameter.grad)
