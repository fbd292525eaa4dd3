"""AdamW as the paper uses it: weight decay on matrices only."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.optim.base import Groups, Rule
from llm_pretrain.optim.piece import shape_of


def decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: matrices of blocks and an untied head, not the embedding."""
    return len(shape_of(parameter)) >= 2 and not name.startswith("embedding")


def decay_groups(named: Iterable[tuple[str, Tensor]], weight_decay: float) -> Groups:
    """Two parameter groups: what is decayed, and the rest. Either may be empty."""
    pairs = list(named)
    return [
        {"params": [p for n, p in pairs if decayed(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in pairs if not decayed(n, p)], "weight_decay": 0.0},
    ]


class AdamW(Rule):
    """torch's fused AdamW, and AdamC's corrected decay (Defazio 2025) for groups that want it.

    A group with a "corrected" decay is decayed by lr * corrected * lr / peak in each step instead
    of lr * weight_decay.
    """

    piecewise = True

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        peak: float | None = None,
    ) -> None:
        """`peak`: the schedule's largest rate, for corrected decay."""
        self._inner = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._peak = peak or lr
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self._adopt(self._inner)
        self.make_state()

    def _first_state(self, _group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        return adam_state(parameter)

    def _update(self, _loss: Tensor | None, _clipped: Tensor | None) -> None:
        for group in self.param_groups:
            if "corrected" in group:
                group["weight_decay"] = group["corrected"] * group["lr"] / self._peak
        self._inner.step()


def adam_state(parameter: Tensor) -> dict[str, Tensor]:
    """What torch's fused AdamW keeps of a parameter before its first update."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
    }
