"""What the training loop may ask of an engine."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from llm_pretrain.optim.averaging import Parts
from llm_pretrain.optim.base import Rule

State = dict[str, Any]
"""Nested dict of this rank's tensors. 'model', by its own parameter names, as it is evaluated and
branched from; 'optimizer', by the same names, with the 'point' where training goes on if that is
another one; 'rule', what belongs to all parameters together; with delayed scaling of FP8 'fp8', the
same on every rank. A leaf is a tensor (a DTensor where it is a part of a larger one), or a function
without arguments that makes one when it is called, in the same order on every rank. A plain tensor
that a function makes is the same on every rank."""


class Engine(Protocol):
    """Places model and optimizer on the devices and trains them; all ranks call together."""

    def forward_backward(self, tokens: torch.Tensor, *, weight: float, last: bool) -> torch.Tensor:
        """Accumulate gradients of `weight` times the mean loss of a micro-batch.

        tokens: (micro_batch, T + 1) in host memory, inputs and shifted targets in one. `last`: no
        micro-batch follows before `step`, so gradients may be reduced. Returns this rank's weighted
        loss.
        """
        ...

    def step(self, lr: float) -> torch.Tensor:
        """Clip to the config's `grad_clip`, update at `lr`, drop gradients.

        Returns the global gradient norm before clipping.
        """
        ...

    def evaluate(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss of each sequence, in nats per token: (B, T + 1) in host memory -> (B,)."""
        ...

    def kurtosis(self) -> torch.Tensor | None:
        """Of each block's output in this rank's last pass (L,), if config.logger asks for it."""
        ...

    def rates(self) -> dict[str, torch.Tensor]:
        """Of the last step: see `optim.base.Rule.rates`."""
        ...

    def parts(self) -> Parts:
        """This rank's own part of the parameters, for averages of them."""
        ...

    def state(self) -> State:
        """The training state, for a save to copy.

        Learning rate and other hyperparameters are not state: they come from the config.
        """
        ...

    def load(
        self,
        fill: Callable[[State], None],
        saved: Collection[str] | None = None,
        *,
        step: int = 0,
    ) -> bool:
        """Take over a state: `fill` puts a checkpoint's values into the tensors it is given.

        `saved`: names of what the checkpoint of `step` has that may be taken; None: all of
        `state()`. Returns whether it has what this update rule remembers; if not, that begins anew.
        """
        ...


def saved_names(state: State) -> set[str]:
    """The names that the leaves of a state have in a checkpoint."""
    names: set[str] = set()
    for key, value in state.items():
        inner = saved_names(value) if isinstance(value, dict) else set()
        names |= {f"{key}.{name}" for name in inner} if inner else {key}
    return names


@dataclass(frozen=True)
class Remembered:
    """What a checkpoint has of a rule's state."""

    whole: bool
    """Whether the rule can go on from it."""
    state: State
    """The leaves to be filled; none if it cannot."""
    lacking: frozenset[str]
    """Of `Rule.late`, what has to begin where the checkpoint ends."""

    @classmethod
    def of(cls, rule: Rule, state: State, saved: Collection[str] | None) -> "Remembered":
        """`state`: of the rule, to be filled; `saved`: as for `Engine.load`."""
        missing = frozenset[str]() if saved is None else saved_names(state) - set(saved)
        lacking = frozenset(name.rpartition(".")[2] for name in missing)
        whole = lacking <= rule.late
        return cls(whole, _without(state, missing) if whole else {}, lacking)

    def begin(self, rule: Rule, step: int) -> None:
        """Make what the checkpoint of `step` does not have, once the parameters are loaded; all
        ranks together."""
        if not self.whole:
            rule.make_state(step)
        elif self.lacking:
            rule.begin(self.lacking)


def _without(state: State, names: Collection[str], prefix: str = "") -> State:
    """The leaves that are not called so in a checkpoint."""
    found: State = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found[key] = _without(value, names, f"{prefix}{key}.")
        elif prefix + key not in names:
            found[key] = value
    return found
