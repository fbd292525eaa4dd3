"""AdEMAMix: AdamW with a second, slow average of gradients."""

import math
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.optim.base import Groups, HostNumber, Rule


class AdEMAMix(Rule):
    """Pagliardini et al. (2024), with the warmups of alpha and beta3 that Apertus used.

        p -= lr ((m1 / (1 - beta1^t) + alpha_t m2) / (sqrt(v / (1 - beta2^t)) + eps) + decay p)

    The slow average m2 has no bias correction: until it has filled, alpha_t is small.
    """

    late = frozenset({"origin"})

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 8.0,
        slow_warmup: int = 0,
        eps: float = 1e-8,
    ) -> None:
        """`slow_warmup`: in updates, from step 0 of the run; the rest as in OptimizerConfig."""
        self._betas, self._alpha, self._warmup, self._eps = betas, alpha, slow_warmup, eps
        self._k, self._origin = HostNumber(), HostNumber()
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.make_state()

    def make_state(self, step: int = 0) -> None:
        """See Rule; also starts the rule's own count anew."""
        super().make_state(step)
        self._k.value, self._origin.value = 0.0, float(step)
        self.shared = {"k": self._k.tensor, "origin": self._origin.tensor}

    def _first_state(self, _group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        names = ("exp_avg", "exp_avg_slow", "exp_avg_sq")
        return {name: torch.zeros_like(parameter, requires_grad=False) for name in names}

    def _update(self, _loss: Tensor | None, _clipped: Tensor | None) -> None:
        self._k.value += 1
        count, (beta1, beta2, _) = self._k.value, self._betas
        done = self._origin.value + count
        beta3, alpha = slow(done, self._warmup, beta1, self._betas[2], self._alpha)
        for decay, batch in self._batches("exp_avg", "exp_avg_slow", "exp_avg_sq"):
            p, g, v = batch.params, batch.grads, batch.state["exp_avg_sq"]
            fast, late = batch.state["exp_avg"], batch.state["exp_avg_slow"]
            torch._foreach_lerp_(fast, g, 1 - beta1)
            torch._foreach_lerp_(late, g, 1 - beta3)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, g, g, 1 - beta2)
            root = torch._foreach_div(v, 1 - beta2**count)
            torch._foreach_sqrt_(root)
            torch._foreach_add_(root, self._eps)
            step = torch._foreach_div(fast, 1 - beta1**count)
            torch._foreach_add_(step, late, alpha=alpha)
            torch._foreach_mul_(p, 1 - self.lr * decay)
            torch._foreach_addcdiv_(p, step, root, -self.lr)


def slow(
    count: float, warmup: int, beta1: float, beta3: float, alpha: float
) -> tuple[float, float]:
    """beta3 and alpha of update `count` = 1, 2, ...: alpha rises linearly, and so does the
    half-life of the slow average, from that of the fast one."""
    if count >= warmup:
        return beta3, alpha
    done = count / warmup
    half_life = (1 - done) * _half_life(beta1) + done * _half_life(beta3)
    return 0.5 ** (1 / (half_life + 1)), alpha * done


def _half_life(beta: float) -> float:
    # The small number is of the original, and keeps a beta of 0 finite.
    return math.log(0.5) / math.log(beta + 1e-8) - 1
