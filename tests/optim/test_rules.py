"""What every rule promises to engines, evaluations and checkpoints."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.adamw import AdamW, decay_groups
from llm_pretrain.optim.base import Rule
from llm_pretrain.optim.build import Lengths, build_rule
from llm_pretrain.optim.muon import Muon

_SMALL = ModelConfig(vocab_size=32, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, ffn=24)
_LENGTHS = Lengths(average_after=2, anneal=6, slow_warmup=9)
_ALL = ("adamw", "schedule_free", "schedule_free_plus", "ademamix", "muon", "projected")


def model_of(*, tied: bool = True) -> Transformer:
    model = Transformer(ModelConfig(**{**vars(_SMALL), "tied_embeddings": tied, "qk_norm": True}))
    model.initialize(0)
    return model


def rule_of(name: str, model: nn.Module) -> Rule:
    if name == "projected":
        config = OptimizerConfig(name="schedule_free", scale_decay=0.1)
        return build_rule(model.named_parameters(), config, Lengths(project=2))
    return build_rule(model.named_parameters(), OptimizerConfig(name=name), _LENGTHS)  # type: ignore[arg-type]


def step(model: Transformer, rule: Rule, count: int = 1, first: int = 0) -> None:
    for k in range(first, first + count):
        tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(k))
        loss = model(tokens[:, :-1], tokens[:, 1:], mean=True)
        loss.backward()
        for group in rule.param_groups:
            group["lr"] = 0.01 / (k + 1)
        rule.update(loss=loss.detach())
        rule.zero_grad()


def everything(model: nn.Module, rule: Rule) -> dict[str, Tensor]:
    """All that a checkpoint has of a rule, by name."""
    found = {f"shared.{name}": value for name, value in rule.shared.items()}
    for name, p in model.named_parameters():
        found[name] = p.detach()
        found |= {f"{name}.{key}": value for key, value in rule.state[p].items()}
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("name", _ALL)
def test_training_goes_on_bitwise_from_the_saved_tensors(name: str) -> None:
    model = model_of()
    rule = rule_of(name, model)
    fresh = everything(model, rule)
    step(model, rule, 3)
    saved = {key: value.clone() for key, value in everything(model, rule).items()}
    # The state of step 0 has the names and shapes that a load fills.
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in saved.items()}
    step(model, rule, 3, first=3)
    other = model_of()
    resumed = rule_of(name, other)
    with torch.no_grad():
        for key, value in everything(other, resumed).items():
            value.copy_(saved[key])
    step(other, resumed, 3, first=3)
    assert_same(everything(model, rule), everything(other, resumed))


@pytest.mark.parametrize("name", _ALL)
def test_reading_out_changes_nothing(name: str) -> None:
    model = model_of()
    rule = rule_of(name, model)
    step(model, rule, 5)
    before = {key: value.clone() for key, value in everything(model, rule).items()}
    read = {n: rule.readout(p) for n, p in model.named_parameters()}
    assert_same(everything(model, rule), before)
    differs = [not torch.equal(read[n], p) for n, p in model.named_parameters()]
    assert all(differs) if rule.averages else not any(differs)
    assert rule.averages == (name in ("schedule_free", "schedule_free_plus", "projected"))


@pytest.mark.parametrize("name", _ALL)
def test_the_host_reads_nothing(name: str) -> None:
    model = model_of()
    rule = rule_of(name, model)
    step(model, rule)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    loss, clipped = torch.tensor(3.0), torch.tensor(0.5)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        rule.update(loss=loss, clipped=clipped)
    calls = {event.name for event in seen.events() if not _within(event, "aten::_fused_adamw_")}
    assert len(calls) > 5
    assert not calls & {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"}


def _within(event: Any, name: str) -> bool:
    """Whether it is part of an operator: torch's fused AdamW reads its step count on a CPU."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.name == name:
            return True
    return False


@pytest.mark.parametrize("name", ["schedule_free", "schedule_free_plus", "ademamix", "muon"])
def test_steps_need_no_values(name: str) -> None:
    """On the meta device there are none to read."""
    p = nn.Parameter(torch.empty(4, 3, device="meta"))
    rule = build_rule([("blocks.0.mlp.up.weight", p)], OptimizerConfig(name=name), _LENGTHS)  # type: ignore[arg-type]
    p.grad = torch.empty_like(p)
    rule.update(loss=torch.empty((), device="meta"), clipped=torch.empty((), device="meta"))
    assert p.device.type == "meta"


def test_adamw_is_torchs() -> None:
    """Bit by bit, with state of the same names."""
    model, other = model_of(tied=False), model_of(tied=False)
    rule = rule_of("adamw", model)
    groups = decay_groups(other.named_parameters(), OptimizerConfig().weight_decay)
    before = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for k in range(3):
        step(model, rule, first=k)
        tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(k))
        other(tokens[:, :-1], tokens[:, 1:], mean=True).backward()
        for group in before.param_groups:
            group["lr"] = 0.01 / (k + 1)
        before.step()
        before.zero_grad()
    theirs = {n: p.detach() for n, p in other.named_parameters()}
    for n, p in other.named_parameters():
        theirs |= {f"{n}.{key}": value for key, value in before.state[p].items()}
    assert_same(everything(model, rule), theirs)
    assert set(rule.state[next(model.parameters())]) == {"step", "exp_avg", "exp_avg_sq"}


def test_corrected_decay() -> None:
    """lr^2 / peak for the blocks' matrices, lr for an untied head, nothing for the rest."""
    model = model_of(tied=False)
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, corrected_decay=True)
    rule = build_rule(model.named_parameters(), config, Lengths())
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in rule.param_groups:
        group["lr"] = 0.025
    rule.update()
    for name, p in model.named_parameters():
        block, head = name.startswith("blocks.") and p.ndim == 2, name == "head.weight"
        share = 0.5 * 0.025 * (0.25 if block else 1.0 if head else 0.0)
        assert torch.allclose(p, first[name] * (1 - share), rtol=1e-6, atol=0), name


@pytest.mark.parametrize("tied", [True, False])
def test_muon_turns_the_blocks_matrices_and_adamw_the_rest(tied: bool) -> None:
    model = model_of(tied=tied)
    rule = rule_of("muon", model)
    for name, p in model.named_parameters():
        matrix = name.startswith("blocks.") and "norm" not in name
        names = {"momentum_buffer"} if matrix else {"step", "exp_avg", "exp_avg_sq"}
        assert set(rule.state[p]) == names, name
    decays = {id(p): g["weight_decay"] for g in rule.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        decayed = p.ndim == 2 and name != "embedding.weight"
        assert decays.pop(id(p)) == (0.1 if decayed else 0.0), name
    assert not decays


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_muon_of_whole_matrices_is_torchs(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    ours = nn.Parameter(torch.randn(shape, generator=draw))
    theirs = nn.Parameter(ours.detach().clone())
    rule = Muon([{"params": [ours], "weight_decay": 0.1, "muon": True}], lr=0.02, momentum=0.9)
    other = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=draw)
        theirs.grad = ours.grad.clone()
        rule.update()
        other.step()
    assert torch.equal(ours, theirs)


def test_peaks_are_those_of_the_config() -> None:
    config = OptimizerConfig(lr=0.5, corrected_decay=True)
    p = nn.Parameter(torch.ones(2, 2))
    rule = build_rule([("blocks.0.mlp.up.weight", p)], config, Lengths())
    p.grad = torch.zeros_like(p)
    rule.update()
    assert isinstance(rule, AdamW)
    assert math.isclose(float(p[0, 0].detach()), 1 - 0.5 * 0.1, rel_tol=1e-6)
    values: Any = rule.param_groups[0]["weight_decay"]
    assert values == pytest.approx(0.1)
