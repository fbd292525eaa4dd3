"""The rules on a network of four tensors, against loops over numbers without torch."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.optim.ademamix import AdEMAMix
from llm_pretrain.optim.base import Rule, alone
from llm_pretrain.optim.schedule_free import ScheduleFree
from llm_pretrain.optim.schedule_free_plus import ScheduleFreePlus
from tests.optim.problems import load, parameter, tensor

NAMES = ("W1", "b1", "W2", "b2")
STEPS = 30
Point = list[float]
"""All numbers of the four tensors in a row."""


def network() -> list[torch.nn.Parameter]:
    inputs = load("inputs")["mlp"]
    return [parameter(inputs[name]) for name in NAMES]


def loss_of(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    inputs = load("inputs")["mlp"]
    x, y = tensor(inputs["X"]), tensor(inputs["Y"])
    return (torch.tanh(x @ w1.T + b1) @ w2.T + b2 - y).square().mean()


def train(rule: Rule, parameters: list[torch.nn.Parameter]) -> tuple[Point, Point]:
    """y and x after all steps."""
    for _ in range(STEPS):
        loss = loss_of(*parameters)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        rule.update(loss=loss.detach())
    return _flat(parameters), _flat([rule.readout(p) for p in parameters])


def _flat(tensors: Any) -> Point:
    return [value for t in tensors for value in t.detach().flatten().tolist()]


def by_hand(point: Point) -> tuple[float, Point]:
    """Loss and gradient by the chain rule, number by number."""
    data = load("inputs")["mlp"]
    w1 = [point[4 * j : 4 * j + 4] for j in range(5)]
    b1, w2, b2 = point[20:25], point[25:30], point[30]
    grad = [0.0] * 31
    total, count = 0.0, len(data["X"])
    for x, (target,) in zip(data["X"], data["Y"], strict=True):
        hidden = [
            math.tanh(sum(a * b for a, b in zip(row, x, strict=True)) + bias)
            for row, bias in zip(w1, b1, strict=True)
        ]
        error = sum(a * b for a, b in zip(w2, hidden, strict=True)) + b2 - target
        total += error * error / count
        outer = 2 * error / count
        grad[30] += outer
        for j, h in enumerate(hidden):
            grad[25 + j] += outer * h
            inner = outer * w2[j] * (1 - h * h)
            grad[20 + j] += inner
            for i, value in enumerate(x):
                grad[4 * j + i] += inner * value
    return total, grad


def plus(
    point: Point, lr: float, decay: float, floor: float, decayed: Callable[[int], bool]
) -> tuple[Point, Point]:
    """ScheduleFree+ with polyak_beta .8, r 1, average after 4, beta .8 to .95 in 12 steps."""
    x, y, z = list(point), list(point), list(point)
    m, v = [0.0] * len(x), [0.0] * len(x)
    average, weights, largest = 0.0, 0.0, 1e-8
    for k in range(STEPS):
        loss, g = by_hand(y)
        done = min(k / 12, 1)
        beta = 1 - 0.2 ** (1 - done) * 0.05**done
        product = beta * sum(a * (b - c) for a, b, c in zip(g, z, x, strict=True))
        average = 0.8 * average + 0.2 * math.sqrt(math.pi / 2) * sum(abs(a) for a in g)
        rate = lr * max(0.0, loss - floor + product) / (average / (1 - 0.8 ** (k + 1)))
        largest = max(largest, rate)
        share = 1.0
        if k >= 4:
            weights += (k + 1) * largest**2
            share = (k + 1) * largest**2 / weights
        for i in range(len(x)):
            z[i] -= rate**2 * (decay if decayed(i) else 0.0) * y[i]
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.95 * v[i] + 0.05 * g[i] ** 2
            root = math.sqrt(v[i] / (1 - 0.95 ** (k + 1)))
            z[i] -= rate * m[i] / (1 - 0.9 ** (k + 1)) / (root + 1e-8)
            x[i] = (1 - share) * x[i] + share * z[i]
            y[i] = beta * x[i] + (1 - beta) * z[i]
    return y, x


def free(point: Point, lr: float, decay: float) -> tuple[Point, Point]:
    """Schedule-Free AdamW with beta .9, beta2 .99, r 1."""
    x, y, z, v = list(point), list(point), list(point), [0.0] * len(point)
    weights = 0.0
    for k in range(STEPS):
        _, g = by_hand(y)
        weights += (k + 1) * lr**2
        share = (k + 1) * lr**2 / weights
        for i in range(len(x)):
            v[i] = 0.99 * v[i] + 0.01 * g[i] ** 2
            root = math.sqrt(v[i] / (1 - 0.99 ** (k + 1)))
            z[i] -= lr * (g[i] / (root + 1e-8) + decay * y[i])
            x[i] = (1 - share) * x[i] + share * z[i]
            y[i] = 0.9 * x[i] + 0.1 * z[i]
    return y, x


def mix(point: Point, lr: float, decay: float) -> tuple[Point, Point]:
    """AdEMAMix with betas .9, .99, .9995, alpha 6, both warmed up over 20 steps."""
    p, size = list(point), len(point)
    fast, late, v = [0.0] * size, [0.0] * size, [0.0] * size
    half = {b: math.log(0.5) / math.log(b + 1e-8) - 1 for b in (0.9, 0.9995)}
    for t in range(1, STEPS + 1):
        _, g = by_hand(p)
        done = min(t / 20, 1)
        mean = half[0.9] * (1 - done) + half[0.9995] * done
        beta3 = 0.5 ** (1 / (mean + 1)) if t < 20 else 0.9995
        for i in range(size):
            fast[i] = 0.9 * fast[i] + 0.1 * g[i]
            late[i] = beta3 * late[i] + (1 - beta3) * g[i]
            v[i] = 0.99 * v[i] + 0.01 * g[i] ** 2
            step = fast[i] / (1 - 0.9**t) + 6 * done * late[i]
            step /= math.sqrt(v[i] / (1 - 0.99**t)) + 1e-8
            p[i] -= lr * (step + decay * p[i])
    return p, p


def _groups(parameters: list[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices, which are decayed, and biases, which are not."""
    return [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def _matrix(i: int) -> bool:
    return i < 20 or 25 <= i < 30


def _close(ours: tuple[Point, Point], theirs: tuple[Point, Point]) -> Iterator[bool]:
    for a, b in zip(ours, theirs, strict=True):
        yield max(abs(c - d) for c, d in zip(a, b, strict=True)) < 1e-12


def test_schedule_free_plus() -> None:
    parameters = network()
    rule = ScheduleFreePlus(
        _groups(parameters, 3.0),
        lr=0.4,
        interpolation=0.8,
        interpolation_end=0.95,
        anneal=12,
        weight_power=1.0,
        average_after=4,
        polyak_beta=0.8,
        loss_floor=0.01,
        total=alone,
    )
    expected = plus(_flat(parameters), 0.4, 3.0, 0.01, _matrix)
    assert all(_close(train(rule, parameters), expected))


def test_schedule_free() -> None:
    parameters = network()
    groups = [{"params": parameters, "weight_decay": 0.1}]
    rule = ScheduleFree(groups, lr=0.02, beta2=0.99, weight_power=1.0)
    expected = free(_flat(parameters), 0.02, 0.1)
    assert all(_close(train(rule, parameters), expected))


def test_ademamix() -> None:
    parameters = network()
    groups = [{"params": parameters, "weight_decay": 0.1}]
    rule = AdEMAMix(groups, lr=0.01, betas=(0.9, 0.99, 0.9995), alpha=6.0, slow_warmup=20)
    expected = mix(_flat(parameters), 0.01, 0.1)
    assert all(_close(train(rule, parameters), expected))
