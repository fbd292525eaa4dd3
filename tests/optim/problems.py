"""Reference trajectories and the problems they are of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.optim.base import Rule

_FOLDER = Path(__file__).parent / "reference"


def case(name: str) -> dict[str, Any]:
    """A trajectory on the quadratic: 'kwargs', and 'steps' with what was after each."""
    return load(f"{name}__quadratic")


def load(name: str) -> dict[str, Any]:
    """A file of the references."""
    loaded: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return loaded


def tensor(values: Any) -> Tensor:
    """float64."""
    return torch.tensor(values, dtype=torch.float64)


def parameter(values: Any) -> torch.nn.Parameter:
    """float64."""
    return torch.nn.Parameter(tensor(values))


def quadratic(w: Tensor) -> Tensor:
    """w'Aw/2 - b'w + c."""
    inputs = load("inputs")["quadratic"]
    a, b = tensor(inputs["A"]), tensor(inputs["b"])
    return 0.5 * w @ a @ w - b @ w + inputs["c"]


def start() -> torch.nn.Parameter:
    """w0 of the quadratic."""
    return parameter(load("inputs")["quadratic"]["w0"])


def walk(
    rule: Rule, w: Tensor, lr: Callable[[int], float] | None = None, count: int = 20
) -> list[dict[str, Tensor]]:
    """Steps on the quadratic; what is after each: y, x, rate, and the state."""
    seen = []
    for k in range(count):
        loss = quadratic(w)
        (w.grad,) = torch.autograd.grad(loss, w)
        if lr:
            for group in rule.param_groups:
                group["lr"] = lr(k)
        rule.update(loss=loss.detach())
        state = {name: value.clone() for name, value in rule.state[w].items()}
        seen.append({"y": w.detach().clone(), "x": rule.readout(w).detach().clone(), **state})
        seen[-1]["rate"] = torch.as_tensor(rule.rate).clone()
        seen[-1] |= {name: value.clone() for name, value in rule.shared.items()}
    return seen


def far(seen: list[dict[str, Tensor]], steps: list[dict[str, Any]], names: dict[str, str]) -> float:
    """The largest difference; `names`: ours -> the reference's."""
    return max(
        (ours[a] - tensor(theirs[b]).reshape(ours[a].shape)).abs().max().item()
        for ours, theirs in zip(seen, steps, strict=True)
        for a, b in names.items()
    )
