"""Where ScheduleFree+ is better than the authors' code, and what engines rely on."""

import math

import pytest
import torch
from torch import Tensor

from llm_pretrain.optim.base import Rule, alone
from llm_pretrain.optim.schedule_free_plus import ScheduleFreePlus
from tests.optim.problems import quadratic, start, walk


def rule_of(w: Tensor, **given: object) -> ScheduleFreePlus:
    return ScheduleFreePlus([{"params": [w], "weight_decay": 0.0}], total=alone, **given)  # type: ignore[arg-type]


def push(rule: Rule, w: Tensor, loss: float, grad: Tensor, clipped: float | None = None) -> float:
    """One step; its rate."""
    w.grad = grad.clone()
    factor = None if clipped is None else torch.tensor(clipped)
    rule.update(loss=torch.tensor(loss, dtype=torch.float64), clipped=factor)
    return rule.rates()["polyak_step"].item()


def test_clipping_leaves_polyaks_step_as_it_is() -> None:
    """From y and z that differ, so that the inner product matters too."""
    rates = []
    for factor in (None, 0.125):
        w = start()
        rule = rule_of(w, polyak_beta=0.5)
        walk(rule, w, count=3)
        grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        assert not torch.equal(w, rule.state[w]["z"])
        rates.append(push(rule, w, 2.0, grad * (factor or 1.0), factor))
    assert math.isclose(*rates, rel_tol=1e-14)


def test_steps_without_gradients_are_none() -> None:
    w = start()
    rule, first, zero = rule_of(w), w.detach().clone(), torch.zeros_like(w)
    assert push(rule, w, 2.0, zero) == 0.0
    assert torch.equal(w, first)
    assert torch.equal(rule.readout(w), first)
    grad = torch.ones_like(w)
    # Then it goes on as ever: the loss over sqrt(pi / 2) times the gradient's absolute sum.
    assert math.isclose(push(rule, w, 2.0, grad), 2 / (math.sqrt(math.pi / 2) * 3), rel_tol=1e-14)
    assert torch.isfinite(w).all()


def test_the_floor_is_taken_off_the_loss() -> None:
    grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rates = {}
    for floor in (0.0, 0.5, 3.0):
        w = start()
        rates[floor] = push(rule_of(w, loss_floor=floor), w, 2.0, grad)
    scale = math.sqrt(math.pi / 2) * 3.5
    assert math.isclose(rates[0.0], 2 / scale, rel_tol=1e-14)
    assert math.isclose(rates[0.5], 1.5 / scale, rel_tol=1e-14)
    assert rates[3.0] == 0.0


def test_a_steady_gradient_has_a_steady_average() -> None:
    """Of equal gradients every mean is the same; a correction that compounds would shrink steps."""
    grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    w = start()
    rule = rule_of(w, polyak_beta=0.9)
    scale = math.sqrt(math.pi / 2) * 3.5
    for _ in range(10):
        x, z = rule.readout(w), rule.state[w]["z"].clone()
        inner = 0.9 * float(grad @ (z - x))
        rate = push(rule, w, 5.0, grad)
        assert math.isclose(rate, (5 + inner) / scale, rel_tol=1e-12)


def test_a_loss_is_needed() -> None:
    w = start()
    w.grad = torch.ones_like(w)
    with pytest.raises(RuntimeError, match="needs the loss"):
        rule_of(w).update()


def test_three_tensors_are_kept_beside_the_parameter() -> None:
    w = start()
    assert set(rule_of(w).state[w]) == {"z", "exp_avg", "exp_avg_sq"}


def test_accumulated_gradients_and_losses_count_as_one_batch() -> None:
    """Halves with weight 1/2 each, as engines add them up, make the step of the whole."""
    whole, halves = start(), start()
    a, b = rule_of(whole), rule_of(halves)
    for _ in range(5):
        loss = quadratic(whole)
        (whole.grad,) = torch.autograd.grad(loss, whole)
        a.update(loss=loss.detach())
        total = torch.zeros((), dtype=torch.float64)
        halves.grad = None
        for share in (0.7, 1.3):
            part = share * quadratic(halves) / 2
            part.backward()
            total += part.detach()
        b.update(loss=total)
    assert torch.allclose(whole, halves, atol=1e-13, rtol=0)


def test_a_step_later_called_by_someone_else_is_the_same() -> None:
    """As DeepSpeed does: what the step needs is given before, the factor found in the step."""
    one, other = start(), start()
    a, b = rule_of(one), rule_of(other)
    grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    push(a, one, 2.0, grad, 0.5)
    other.grad = grad.clone()
    b.given(loss=torch.tensor(2.0, dtype=torch.float64), clipped=lambda: torch.tensor(0.5))
    b.step()
    assert torch.equal(one, other)
