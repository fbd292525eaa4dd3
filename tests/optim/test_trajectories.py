"""Each rule makes the steps of its authors' code, to rounding."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_pretrain.optim.ademamix import AdEMAMix
from llm_pretrain.optim.base import alone
from llm_pretrain.optim.schedule_free import ScheduleFree
from llm_pretrain.optim.schedule_free_plus import ScheduleFreePlus
from tests.optim.problems import case, far, quadratic, start, tensor, walk

_PLUS = {
    "x": "x",
    "y": "y",
    "z": "z",
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "rate": "scheduled_lr",
    "lr_max": "lr_max",
    "weight_sum": "weight_sum",
}
_FREE = {
    "x": "x",
    "y": "y",
    "z": "z",
    "exp_avg_sq": "exp_avg_sq",
    "lr_max": "lr_max",
    "weight_sum": "weight_sum",
}


class _Compounding(ScheduleFreePlus):
    """Keeps the corrected average, as the authors' code does, so that it is corrected again."""

    def _scale(self, length: Tensor) -> Tensor:
        corrected = super()._scale(length)
        self.shared["gradient_l1"].copy_(corrected)
        return corrected


def _plus(
    w: Tensor, kwargs: dict[str, Any], cls: type[ScheduleFreePlus] = ScheduleFreePlus
) -> ScheduleFreePlus:
    names = {"sf_beta1": "interpolation", "sf_beta1_max": "interpolation_end", "r": "weight_power"}
    names |= {"sf_beta1_anneal_steps": "anneal", "c_warmup": "average_after"}
    given = {names.get(k, k): v for k, v in kwargs.items()}
    decay = given.pop("weight_decay", 0.0)
    return cls([{"params": [w], "weight_decay": decay}], total=alone, **given)


@pytest.mark.parametrize("name", ["plus_default", "plus_wd_lr03"])
def test_schedule_free_plus(name: str) -> None:
    w, reference = start(), case(name)
    seen = walk(_plus(w, reference["kwargs"]), w)
    assert far(seen, reference["steps"], _PLUS) < 1e-12


def test_schedule_free_plus_with_everything_and_warmup() -> None:
    w, reference = start(), case("plus_full_lrwarmup4")
    seen = walk(_plus(w, reference["kwargs"]), w, lambda k: min(1, (k + 1) / 4))
    assert far(seen, reference["steps"], _PLUS) < 1e-12


def test_the_average_of_gradients_is_corrected_once() -> None:
    w, right = start(), case("fixedema_plus_full")
    seen = walk(_plus(w, right["kwargs"]), w)
    assert far(seen, right["steps"], {"x": "x", "y": "y", "z": "z", "rate": "G"}) < 1e-12
    w, wrong = start(), case("plus_full")
    seen = walk(_plus(w, wrong["kwargs"], _Compounding), w)
    assert far(seen, wrong["steps"], _PLUS) < 1e-12


@pytest.mark.parametrize(
    "name", ["sf_adamw_ref_default", "sf_adamw_ref_wd_warmup", "sf_adamw_fast_wd_warmup"]
)
def test_schedule_free(name: str) -> None:
    w, reference = start(), case(name)
    given = {"lr": 0.0025, "betas": [0.9, 0.999], "weight_decay": 0.0, "r": 0.0, "warmup_steps": 0}
    given |= reference["kwargs"]
    (beta1, beta2), lr, warmup = given["betas"], given["lr"], given["warmup_steps"]
    rule = ScheduleFree(
        [{"params": [w], "weight_decay": given["weight_decay"]}],
        interpolation=beta1,
        beta2=beta2,
        weight_power=given["r"],
    )
    seen = walk(rule, w, lambda k: lr * (min(1, (k + 1) / warmup) if warmup else 1))
    assert far(seen, reference["steps"], _FREE) < 1e-12


def formulas(
    given: dict[str, Any], gradient: Callable[[int, Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    """The family's steps in plain arithmetic. `gradient`: of step k, at y."""
    given = {"r": 0.0, "inner_momentum": 0.0, **given}
    b1, b2 = given.get("betas", (given.get("momentum"), None))
    x = y = z = start().detach()
    v, m, largest, weights, seen = torch.zeros_like(x), torch.zeros_like(x), 0.0, 0.0, []
    for k in range(20):
        g = gradient(k, y)
        rate = given["lr"] * min(1, (k + 1) / given["warmup_steps"])
        largest = max(largest, rate)
        weight = (k + 1) ** given["r"] * largest**2
        weights += weight
        z = z - rate * given["weight_decay"] * y
        if b2 is not None:
            v = b2 * v + (1 - b2) * g**2
            m = given["inner_momentum"] * m + (1 - given["inner_momentum"]) * g
            g = m / (1 - given["inner_momentum"] ** (k + 1))
            g = g / ((v / (1 - b2 ** (k + 1))).sqrt() + 1e-8)
        z = z - rate * g
        x = x + (z - x) * weight / weights
        y = b1 * x + (1 - b1) * z
        seen.append({"x": x, "y": y, "z": z})
    return seen


@pytest.mark.parametrize("name", ["sf_adamw_ref_inner_r2", "sf_sgd_ref"])
def test_the_formulas_are_those_of_the_reference(name: str) -> None:
    """Inner momentum and SGD are no options here: what the rule is compared with below."""
    reference = case(name)
    steps = reference["steps"]
    seen = formulas(reference["kwargs"], lambda k, _: tensor(steps[k]["grad"][0]))
    assert far(seen, steps, {"x": "x", "y": "y", "z": "z"}) < 1e-12


@pytest.mark.parametrize("r", [0.0, 1.0, 2.0])
def test_schedule_free_weighs_late_iterates_more(r: float) -> None:
    """As the formulas do that make the reference's trajectory with r = 2."""
    given = {**case("sf_adamw_ref_inner_r2")["kwargs"], "inner_momentum": 0.0, "r": r}

    def gradient(_: int, y: Tensor) -> Tensor:
        at = y.clone().requires_grad_()
        return torch.autograd.grad(quadratic(at), at)[0]

    w, (beta1, beta2) = start(), given["betas"]
    rule = ScheduleFree(
        [{"params": [w], "weight_decay": given["weight_decay"]}],
        interpolation=beta1,
        beta2=beta2,
        weight_power=r,
    )
    lr, warmup = given["lr"], given["warmup_steps"]
    seen = walk(rule, w, lambda k: lr * min(1, (k + 1) / warmup))
    for ours, theirs in zip(seen, formulas(given, gradient), strict=True):
        assert all((ours[name] - theirs[name]).abs().max() < 1e-12 for name in ("x", "y", "z"))


def test_ademamix() -> None:
    w, reference = start(), case("ademamix")
    given = dict(reference["kwargs"])
    assert given.pop("beta3_warmup") == given["alpha_warmup"]
    warmup, decay = given.pop("alpha_warmup"), given.pop("weight_decay")
    rule = AdEMAMix([{"params": [w], "weight_decay": decay}], slow_warmup=warmup, **given)
    assert far(walk(rule, w), reference["steps"], {"y": "p"}) < 1e-12


def test_the_interpolation_may_change_on_a_resume() -> None:
    """x and z are kept, and y is where the new beta puts it."""
    w = start()
    rule = ScheduleFree([{"params": [w], "weight_decay": 0.0}], lr=0.05)
    walk(rule, w, count=5)
    other = ScheduleFree([{"params": [w], "weight_decay": 0.0}], lr=0.05, interpolation=0.95)
    x, z = rule.readout(w), rule.state[w]["z"].clone()
    for name, value in rule.state[w].items():
        other.state[w][name].copy_(value)
    for name, value in rule.shared.items():
        other.shared[name].copy_(value)
    assert torch.equal(other.readout(w), x)
    w.grad = torch.zeros_like(w)
    other.update()
    share = rule.shared["lr_max"].item() ** 2
    share /= rule.shared["weight_sum"].item() + share
    x = torch.lerp(x, z, share)
    assert torch.allclose(other.readout(w), x, atol=1e-14, rtol=0)
    assert torch.allclose(w.detach(), 0.95 * x + 0.05 * z, atol=1e-14, rtol=0)
    assert math.isclose(other.shared["interpolation"].item(), 0.95)
