"""Normalize-and-Project holds norms and leaves the function of invariant matrices alone."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from llm_pretrain.config.optimizer import OptimizerConfig, RuleName
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.build import Lengths, build_rule
from llm_pretrain.optim.project import NormalizeAndProject

_MODEL = ModelConfig(
    vocab_size=32,
    width=16,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    ffn=24,
    qk_norm=True,
    # The norm's own epsilon is what is left of the scale.
    norm_eps=1e-12,
)
_TOKENS = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))


def model_of() -> Transformer:
    model = Transformer(_MODEL)
    model.initialize(0)
    return model.double()


def rule_of(model: Transformer, config: OptimizerConfig, every: int = 1) -> NormalizeAndProject:
    rule = build_rule(model.named_parameters(), config, Lengths(project=every))
    assert isinstance(rule, NormalizeAndProject)
    return rule


def step(model: Transformer, rule: NormalizeAndProject, lr: float = 0.05) -> None:
    for group in rule.param_groups:
        group["lr"] = lr
    loss = model(_TOKENS[:, :-1], _TOKENS[:, 1:], mean=True)
    loss.backward()
    rule.update(loss=loss.detach())
    rule.zero_grad()


def norms(model: Transformer) -> dict[str, float]:
    return {n: float(p.detach().norm()) for n, p in model.named_parameters() if p.ndim == 2}


EVERY = ("adamw", "schedule_free", "schedule_free_plus", "ademamix", "muon")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("which", ["invariant", "blocks"])
def test_norms_are_constant(name: RuleName, which: str) -> None:
    model = model_of()
    config = replace(OptimizerConfig(), name=name, weight_decay=0.0)
    rule = rule_of(model, replace(config, projected=which))  # type: ignore[arg-type]
    first = norms(model)
    for _ in range(8):
        step(model, rule)
    held = {n for n, norm in norms(model).items() if abs(norm / first[n] - 1) < 1e-6}
    blocks = {n for n in first if n.startswith("blocks.")}
    queries = {n for n in blocks if n.endswith((".q.weight", ".k.weight"))}
    assert held == (blocks if which == "blocks" else queries)


@pytest.mark.parametrize("name", EVERY)
def test_an_invariant_model_computes_the_same_after_a_projection(name: RuleName) -> None:
    """At the point of training and at the average: one run projects after its last step, another
    that is the same up to there does not."""
    outputs = []
    for every in (5, 6):
        model = model_of()
        rule = rule_of(model, OptimizerConfig(name=name), every)
        for _ in range(5):
            step(model, rule)
        at = [model(_TOKENS)]
        read = {n: rule.readout(p) for n, p in model.named_parameters()}
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(read[n])
            outputs.append((*at, model(_TOKENS), norms(model)))
    (y, x, projected), (other_y, other_x, free) = outputs
    # Norms compute in float32.
    assert torch.allclose(y, other_y, atol=2e-5, rtol=0)
    assert torch.allclose(x, other_x, atol=2e-5, rtol=0)
    name_of_one = "blocks.0.attention.q.weight"
    assert abs(projected[name_of_one] / free[name_of_one] - 1) > 5e-3


def test_without_a_norm_behind_it_a_matrix_is_not_invariant() -> None:
    """Why values, outputs and SwiGLU are left out: their scale is part of the function."""
    model = model_of()
    with torch.no_grad():
        before = model(_TOKENS)
        for name, p in model.named_parameters():
            if p.ndim != 2 or not name.startswith("blocks.0."):
                continue
            p.mul_(2)
            same = torch.allclose(model(_TOKENS), before, atol=1e-9, rtol=0)
            p.div_(2)
            assert same == name.endswith((".q.weight", ".k.weight")), name


def test_projections_come_when_they_are_due() -> None:
    model = model_of()
    rule, first = rule_of(model, OptimizerConfig(), every=3), norms(model)
    name = "blocks.1.attention.k.weight"
    held = []
    for _ in range(7):
        step(model, rule)
        held.append(abs(norms(model)[name] / first[name] - 1) < 1e-9)
    assert held == [False, False, True, False, False, True, False]


def test_the_points_of_an_average_stay_in_line() -> None:
    """y, z and x are multiplied by one factor, and moments are not touched."""
    points = []
    for every in (4, 5):
        model = model_of()
        rule = rule_of(model, OptimizerConfig(name="schedule_free_plus"), every)
        for _ in range(4):
            step(model, rule, lr=0.5)
        p = model.get_parameter("blocks.0.attention.q.weight")
        points.append((p.detach(), rule.readout(p).detach(), *rule.state[p].values()))
    (y, x, z, m, v, norm), (other_y, other_x, other_z, other_m, other_v, _) = points
    factor = norm / other_y.norm()
    assert abs(factor - 1) > 1e-3
    for ours, theirs in ((y, other_y), (z, other_z), (x, other_x)):
        assert torch.allclose(ours, factor * theirs, rtol=1e-12, atol=1e-14)
    assert torch.equal(m, other_m)
    assert torch.equal(v, other_v)


def test_scales_of_norms_go_to_one() -> None:
    model = model_of()
    rule = rule_of(model, OptimizerConfig(scale_decay=0.5, weight_decay=0.0))
    with torch.no_grad():
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
            if p.ndim == 1:
                p.fill_(3.0)
    for group in rule.param_groups:
        group["lr"] = 0.1
    rule.update()
    for n, p in model.named_parameters():
        assert p.ndim == 2 or torch.allclose(p, torch.full_like(p, 3 - 2 * 0.05)), n


@pytest.mark.parametrize("which", ["invariant", "blocks"])
def test_the_effective_rate_is_the_rate_over_the_norm(which: str) -> None:
    """At each rate, since the norms are those of the start; a mean for each kind of matrix."""
    model = model_of()
    rule = rule_of(model, replace(OptimizerConfig(), projected=which))  # type: ignore[arg-type]
    kinds = ["q", "k"] if which == "invariant" else ["q", "k", "v", "out", "gate", "up", "down"]
    first = norms(model)
    for lr in (0.02, 0.05, 0.01):
        step(model, rule, lr)
        rates = {name: rate.item() for name, rate in rule.rates().items()}
        assert list(rates) == [f"lr_effective_{kind}" for kind in kinds]
        for kind in kinds:
            inverse = [1 / norm for n, norm in first.items() if n.endswith(f".{kind}.weight")]
            mean = sum(inverse) / len(inverse)
            assert rates[f"lr_effective_{kind}"] == pytest.approx(lr * mean, rel=1e-12)


def test_with_polyaks_step_the_effective_rate_is_that_over_the_norm() -> None:
    model = model_of()
    rule, first = rule_of(model, OptimizerConfig(name="schedule_free_plus")), norms(model)
    step(model, rule, lr=0.5)
    rates = rule.rates()
    inverse = [1 / norm for n, norm in first.items() if n.endswith(".q.weight")]
    expected = rates["polyak_step"].item() * sum(inverse) / len(inverse)
    assert rates["polyak_step"].item() > 0
    assert rates["lr_effective_q"].item() == pytest.approx(expected)


def test_a_matrix_of_zeros_stays_free() -> None:
    """It has no norm to hold; what it becomes is not projected, and nothing is divided by 0."""
    model = model_of()
    p = model.get_parameter("blocks.0.attention.q.weight")
    with torch.no_grad():
        p.zero_()
    rule = rule_of(model, OptimizerConfig(weight_decay=0.0))
    for _ in range(3):
        step(model, rule)
    assert torch.isfinite(p).all()
    assert p.detach().norm() > 0
    assert all(torch.isfinite(rate) for rate in rule.rates().values())


def turns(project: int, lr: list[float]) -> list[float]:
    """Angles by which a matrix turns in steps along random gradients."""
    name = "blocks.0.attention.q.weight"
    w = torch.nn.Parameter(model_of().get_parameter(name).detach())
    rule = build_rule([(name, w)], OptimizerConfig(weight_decay=0.0), Lengths(project=project))
    draw, angles = torch.Generator().manual_seed(2), []
    for rate in lr:
        before = w.detach().clone()
        w.grad = torch.randn(w.shape, generator=draw, dtype=w.dtype)
        rule.param_groups[0]["lr"] = rate
        rule.update()
        cosine = torch.nn.functional.cosine_similarity(before.flatten(), w.detach().flatten(), 0)
        angles.append(torch.arccos(cosine).item())
    return angles


def test_under_projections_the_schedule_is_the_effective_schedule() -> None:
    """A matrix turns in proportion to the rate, also late in a run. Without, its norm grows, which
    is a decay of the rate that no schedule shows."""
    # A rate, a half of it, and the first again; of each without the steps that fill the moments.
    lr = [4e-3] * 150 + [2e-3] * 100 + [4e-3] * 100
    means = {}
    for project in (0, 1):
        angles = turns(project, lr)
        means[project] = [fmean(angles[a:b]) for a, b in ((50, 150), (170, 250), (270, 350))]
    first, half, again = means[1]
    assert half / first == pytest.approx(0.5, rel=0.06)
    assert again / first == pytest.approx(1, rel=0.02)
    first, _, again = means[0]
    assert again / first < 0.8
