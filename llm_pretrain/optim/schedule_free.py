"""Schedule-Free AdamW, by its authors' package."""

from typing import Any

import schedulefree
import torch
from torch import Tensor

from llm_pretrain.optim.base import Groups, HostNumber, Rule
from llm_pretrain.optim.interpolated import Interpolated


class ScheduleFree(Interpolated, Rule):
    """Defazio et al. (2024): AdamW without a decaying rate, evaluated at an average.

    `schedulefree.AdamWScheduleFree` does the steps, on shards as on whole tensors. Two things are
    done here. Its eval() and train() turn y into x and back in place, which changes y in the last
    bits, so that an evaluation would change the training that follows; `readout` does not. And what
    it counts, it keeps in floats of its groups, which a checkpoint of tensors would lose; they are
    in `shared` between the steps.

    It multiplies gradients in place, so they mean nothing after a step.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float = 0.0025,
        interpolation: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_power: float = 0.0,
    ) -> None:
        """The arguments are as in OptimizerConfig."""
        inner: Any = schedulefree.AdamWScheduleFree(
            groups, lr=lr, betas=(interpolation, beta2), eps=eps, r=weight_power
        )
        inner.train()
        self._inner, self._wanted = inner, interpolation
        self._numbers = {"k": HostNumber(), "lr_max": HostNumber(), "weight_sum": HostNumber()}
        self._beta = HostNumber(interpolation)
        super().__init__(inner.param_groups, inner.defaults)
        self._adopt(inner)
        self.make_state()

    def make_state(self, step: int = 0) -> None:
        """See Rule; also starts the rule's own numbers anew."""
        super().make_state(step)
        for number, value in zip(self._numbers.values(), (0.0, -1.0, 0.0), strict=True):
            number.value = value
        self._beta.value = self._wanted
        numbers = {name: number.tensor for name, number in self._numbers.items()}
        self.shared = {**numbers, "interpolation": self._beta.tensor}

    def _first_state(self, _group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        return {
            "z": parameter.detach().clone(),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }

    def _update(self, _loss: Tensor | None, _clipped: Tensor | None) -> None:
        if self._beta.value != self._wanted:
            self._interpolate_anew()
        for group in self.param_groups:
            for name, number in self._numbers.items():
                group[name] = int(number.value) if name == "k" else number.value
        self._inner.step()
        # The groups have one learning rate, so they count alike.
        for name, number in self._numbers.items():
            number.value = self.param_groups[0][name]

    def _interpolate_anew(self) -> None:
        """Move y to where it is for the same x and z when a run goes on with another beta."""
        for _, batch in self._batches("z"):
            torch._foreach_lerp_(
                batch.params, batch.state["z"], 1 - self._wanted / self._beta.value
            )
        self._beta.value = self._wanted
