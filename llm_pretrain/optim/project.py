"""Normalize-and-Project: any update rule, with matrices held at the norm that they began with."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.optim.base import HostNumber, Rule, copies
from llm_pretrain.optim.piece import Total
from llm_pretrain.parts import local

_INVARIANT = ("attention.q.weight", "attention.k.weight")
_SCALES = "norm.weight"


def projects(name: str, config: OptimizerConfig) -> bool:
    """Whether the parameter of that name is held at its norm.

    Whose scale does the model's function not depend on? Queries and keys have their own norm
    (model.qk_norm), so W and 2 W compute the same: these. Values and SwiGLU's matrices are only
    preceded by a norm: twice the weights write twice as much into the residual stream, beside what
    others write there; with projected=blocks they are held too, which the model feels. Embedding
    and head never: the scale of the head is that of the logits, and of the embedding how much later
    blocks add to it.
    """
    if not name.startswith("blocks."):
        return False
    if config.projected == "blocks":
        return name.endswith(".weight") and not is_scale(name)
    return name.endswith(_INVARIANT)


def is_scale(name: str) -> bool:
    """Whether a parameter is the scale of a norm. No norm here has an offset."""
    return name.endswith(_SCALES)


class NormalizeAndProject(Rule):
    """Lyle et al. (2024) around another rule, whose groups and state are also this one's.

    Every `every` updates each matrix is multiplied by what gives it back the Frobenius norm it had
    at the start. Moments are not touched. A rule that averages has two points, y and z, and the
    average between them: all are multiplied by the factor of y, the point where gradients are
    taken, so they stay in line, and x is the average of the same iterates at another scale.

    After a projection the effective learning rate of a matrix, the size of the turn that an update
    of Adam's makes, is the rate over that norm: see `rates`. Weight decay on these matrices has no
    effect but on the norms in between.

    The norms' scales are decayed towards 1, in all points alike.
    """

    def __init__(
        self,
        inner: Rule,
        matrices: Mapping[str, Tensor],
        scales: list[Tensor],
        *,
        every: int,
        scale_decay: float,
        total: Total,
        plain_copies: int = 1,
    ) -> None:
        """`matrices`, by name, and `scales` are parameters of `inner`; the norms of `matrices` are
        measured now, by all ranks. `every`: in updates. `scale_decay`: share of the distance to 1,
        times the step size."""
        self._inner, self._matrices, self._scales = inner, list(matrices.values()), scales
        self._kinds = [name.split(".")[-2] for name in matrices]
        self._every, self._decay = every, scale_decay
        self._total, self._copies = total, plain_copies
        self._updates = HostNumber()
        super().__init__(inner.param_groups, inner.defaults)
        self.needs_loss = inner.needs_loss  # type: ignore[misc]
        self.late = inner.late | {"norm", "updates"}
        self.param_groups, self.state = inner.param_groups, inner.state
        self.shared = {**inner.shared, "updates": self._updates.tensor}
        self._record()

    def make_state(self, step: int = 0) -> None:
        """See Rule."""
        self._inner.make_state(step)
        self._updates.value = 0.0
        self.shared = {**self._inner.shared, "updates": self._updates.tensor}
        self._record()

    def begin(self, names: Collection[str]) -> None:
        """See Rule: a branch of a run that did not project holds the norms that it begins with."""
        self._inner.begin(names)
        if "norm" in names:
            self._updates.value = 0.0
            self._record()

    @torch.no_grad()
    def _record(self) -> None:
        """Take the norms that the matrices have now as those to hold; all ranks together."""
        norms = self._norms()
        for parameter, norm in zip(self._matrices, norms.unbind(), strict=True):
            self.state[parameter]["norm"] = norm.clone()

    def readout(self, parameter: Tensor) -> Tensor:
        """See Rule."""
        return self._inner.readout(parameter)

    @property
    def averages(self) -> bool:
        """See Rule."""
        return self._inner.averages

    @torch.no_grad()
    def rates(self) -> dict[str, Tensor]:
        """See Rule; also the effective rate, the last step's over the norm that is held: its mean
        over the matrices of a kind, such as 'lr_effective_q' and 'lr_effective_k'.

        Matrices that began at 0, and so have no norm to hold, are left out.
        """
        found = self._inner.rates()
        for kind in dict.fromkeys(self._kinds):
            mine = [p for p, k in zip(self._matrices, self._kinds, strict=True) if k == kind]
            held = torch.stack([self.state[p]["norm"] for p in mine])
            inverse = torch.where(held > 0, 1 / held, torch.zeros_like(held))
            count = (held > 0).sum().clamp(min=1)
            found[f"lr_effective_{kind}"] = self.rate * inverse.sum() / count
        return found

    def _first_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        return self._inner._first_state(group, parameter)

    def _update(self, loss: Tensor | None, clipped: Tensor | None) -> None:
        self._inner.update(loss=loss, clipped=clipped)
        self.rate = self._inner.rate
        self._updates.value += 1
        self._to_one()
        if self._updates.value % self._every == 0:
            self._project()

    def _project(self) -> None:
        held = torch.stack([self.state[p]["norm"] for p in self._matrices])
        norms = self._norms()
        factors = torch.where((norms > 0) & (held > 0), held / norms, torch.ones_like(norms))
        for parameter, factor in zip(self._matrices, factors.unbind(), strict=True):
            for point in self._points(parameter):
                point.mul_(factor.to(point.dtype))

    def _to_one(self) -> None:
        if not self._decay:
            return
        share = self.rate * self._decay
        for parameter in self._scales:
            for point in self._points(parameter):
                change = (1 - point) * share
                point.add_(change.to(point.dtype))

    def _points(self, parameter: Tensor) -> list[Tensor]:
        """What this rank holds of the points that move together: the parameter, and z."""
        state = self.state[parameter]
        return [local(parameter), *([local(state["z"])] if "z" in state else [])]

    def _norms(self) -> Tensor:
        """Frobenius norms of the whole matrices, float64 (matrices,)."""
        squares = [
            torch.linalg.vector_norm(local(p), dtype=torch.float64).square()
            / copies(p, self._copies)
            for p in self._matrices
        ]
        return self._total(torch.stack(squares)).sqrt()
