"""The decoder: what it computes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.transformer import Norm, Transformer, rope_tables, rotate

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


def by_hand(model: Transformer, tokens: Tensor) -> Tensor:
    """The model written a second time: float64, one sequence, one head and position at a time."""
    c, state = model.config, {k: v.double() for k, v in model.state_dict().items()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * weight

    def turn(x: Tensor, position: int) -> Tensor:
        half = c.head_dim // 2
        pairs = torch.complex(x[:half], x[half:])
        angles = position * c.rope_theta ** (-2 * torch.arange(half).double() / c.head_dim)
        turned = pairs * torch.polar(torch.ones(half).double(), angles)
        return torch.cat((turned.real, turned.imag))

    x = state["embedding.weight"][tokens]
    for i in range(c.layers):
        w = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if f"blocks.{i}." in k}
        y = norm(x, w["attention_norm.weight"])
        q, k, v = (y @ w[f"attention.{n}.weight"].T for n in "qkv")
        mixed = torch.zeros(len(tokens), c.heads, c.head_dim).double()
        for h in range(c.heads):
            group = h // (c.heads // c.kv_heads)
            mine = slice(h * c.head_dim, (h + 1) * c.head_dim)
            theirs = slice(group * c.head_dim, (group + 1) * c.head_dim)
            keys = k[:, theirs]
            queries = q[:, mine]
            if c.qk_norm:
                queries = norm(queries, w["attention.q_norm.weight"])
                keys = norm(keys, w["attention.k_norm.weight"])
            keys = torch.stack([turn(key, p) for p, key in enumerate(keys)])
            for t in range(len(tokens)):
                scores = keys[: t + 1] @ turn(queries[t], t) / math.sqrt(c.head_dim)
                mixed[t, h] = scores.softmax(0) @ v[: t + 1, theirs]
        x = x + mixed.flatten(1) @ w["attention.out.weight"].T
        y = norm(x, w["mlp_norm.weight"])
        gate = y @ w["mlp.gate.weight"].T
        x = x + (gate * gate.sigmoid() * (y @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T
    return norm(x, state["norm.weight"]) @ state["head.weight"].T


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, kv_heads=4),
        replace(CONFIG, tied_embeddings=False, rope_theta=500.0, norm_eps=1e-3),
        replace(CONFIG, qk_norm=True, head_dim=10),
    ],
    ids=["grouped", "multi-head", "untied", "qk-norm"],
)
def test_equals_the_formulas(config: ModelConfig) -> None:
    model = build(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # norms of 1 would hide a missing weight
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
        tokens = some_tokens(2, 11)
        logits = model(tokens)
    assert logits.shape == (2, 11, config.vocab_size)
    for row in range(2):
        expected = by_hand(model, tokens[row]).float()
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)


def test_no_token_sees_the_future() -> None:
    model = build()
    tokens = some_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :7], b[:, :7], atol=1e-6, rtol=1e-6)
    assert (a[:, 7:] - b[:, 7:]).abs().amax(dim=-1).min() > 1e-4


def test_rope_depends_on_the_distance_alone() -> None:
    cos, sin = rope_tables(64, 16, 10000.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
    turned_q = rotate(q.expand(1, 64, 1, 16), cos, sin)[0, :, 0]  # (T, D)
    turned_k = rotate(k.expand(1, 64, 1, 16), cos, sin)[0, :, 0]
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 5, 40):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert not torch.allclose(scores[5, 0], scores[0, 0], atol=1e-2)
    torch.testing.assert_close(turned_q[0], q.flatten())


def test_rope_tables_stay_float32_at_long_range() -> None:
    cos, _ = rope_tables(8192, 128, 500000.0, torch.device("cpu"))
    assert cos.dtype == torch.float32
    exact = torch.cos(8191 * 500000.0 ** (-2 * torch.arange(64).double() / 128))
    torch.testing.assert_close(cos[-1, 0].double(), exact, atol=2e-3, rtol=0)


def test_norm_is_computed_in_float32() -> None:
    norm = Norm(64, 1e-5)
    x = 300 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = norm(x.float()).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


def test_qk_norm_makes_scale_of_queries_irrelevant() -> None:
    tokens = some_tokens(2, 9)
    for qk_norm in (True, False):
        model = build(replace(CONFIG, qk_norm=qk_norm, norm_eps=1e-9))
        with torch.no_grad():
            before = model(tokens)
            for block in model.blocks:
                block.attention.q.weight.mul_(7.0)
            after = model(tokens)
        assert torch.allclose(before, after, atol=1e-4) == qk_norm


def test_loss_is_cross_entropy_of_the_logits() -> None:
    model, tokens, targets = build(), some_tokens(3, 10), some_tokens(3, 10, seed=2)
    with torch.no_grad():
        nll = model(tokens, targets)
        logits = model(tokens)
    assert nll.shape == (3, 10)
    assert nll.dtype == torch.float32
    expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(nll, expected)


def test_loss_takes_the_shifted_views_of_a_batch() -> None:
    model, batch = build(), some_tokens(3, 11)
    with torch.no_grad():
        views = model(batch[:, :-1], batch[:, 1:])
        copies = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    assert torch.equal(views, copies)


def test_every_parameter_learns() -> None:
    model = build(replace(CONFIG, qk_norm=True, tied_embeddings=False))
    tokens = some_tokens(2, 16)
    model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bf16_autocast_is_close_and_loss_stays_float32() -> None:
    model, tokens, targets = build(), some_tokens(4, 16), some_tokens(4, 16, seed=2)
    full = model(tokens, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens, targets)
        assert model(tokens).dtype == torch.bfloat16  # the matrix products were indeed bfloat16
    assert half.dtype == torch.float32
    assert half.mean().item() == pytest.approx(full.mean().item(), rel=5e-3)
    torch.testing.assert_close(half, full, atol=0.15, rtol=0.02)


def test_loss_is_float32_without_autocast_too() -> None:
    model, tokens = build().bfloat16(), some_tokens(4, 16)
    expected = F.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())
    nll = model(tokens, tokens)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.mean(), expected)


def test_inference_mode_first_does_not_spoil_training() -> None:
    model, tokens = build(), some_tokens(2, 8)
    with torch.inference_mode():
        model(tokens)
    model(tokens, tokens).mean().backward()


@pytest.mark.slow
def test_compiled_block_computes_the_same() -> None:
    model, tokens = build(replace(CONFIG, qk_norm=True)), some_tokens(2, 16)
    expected = model(tokens, tokens)
    expected.mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    names = set(model.state_dict())
    model.blocks[0].compile(fullgraph=True)
    compiled = model(tokens, tokens)
    compiled.mean().backward()
    torch.testing.assert_close(compiled, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
    assert set(model.state_dict()) == names
