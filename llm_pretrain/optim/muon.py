"""Muon: orthogonal updates of the blocks' matrices, AdamW for everything else."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llm_pretrain.optim.adamw import adam_state
from llm_pretrain.optim.base import Groups, Rule, alone, gradient, like
from llm_pretrain.optim.piece import Piece, Total, shape_of
from llm_pretrain.parts import local, local_part

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's quintic, as in torch.optim.Muon."""
_TINY = 1e-7


class Muon(Rule):
    """Jordan (2024) with the size of updates that Liu et al. (2025) match to AdamW's: 0.2 sqrt of
    the longer side, so that learning rate and weight decay are AdamW's.

    On whole matrices this is torch.optim.Muon with adjust_lr_fn="match_rms_adamw", bit by bit. That
    one takes DTensors too, but then its 15 products per matrix are cut over the ranks, with a dozen
    all-reduces in between, and their sums of bfloat16 make an update depend on the layout to 2%.
    Here momentum is kept in parts, the direction is gathered once in the bfloat16 that the
    products begin with, and every rank makes the whole orthogonal matrix, the same under each
    layout. The price is that every rank does all products: up to 6 ns_steps times rows times
    columns times the shorter side, in operations of bfloat16.
    """

    piecewise = True

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
        ns_steps: int = 5,
        total: Total = alone,
    ) -> None:
        """`groups` with "muon": True hold matrices (rows, columns), whole, sharded or as pieces;
        the others' parameters are AdamW's, whose `betas` and `eps` these are. `total`: sums over
        ranks, which gathers pieces."""
        self._momentum, self._ns_steps, self._total = momentum, ns_steps, total
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__(self._adamw.param_groups, self._adamw.defaults)
        self._matrices = [g for g in self.param_groups if g.get("muon")]
        self._adopt(self._adamw, [g for g in self.param_groups if not g.get("muon")])
        self.make_state()

    def _first_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        if not group.get("muon"):
            return adam_state(parameter)
        return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}

    def _update(self, _loss: Tensor | None, _clipped: Tensor | None) -> None:
        self._adamw.step()
        for group in self._matrices:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._turn(parameter, group["weight_decay"])

    def _turn(self, parameter: Tensor, decay: float) -> None:
        average, own = local(self.state[parameter]["momentum_buffer"]), gradient(parameter)
        average.lerp_(own, 1 - self._momentum)
        # Nesterov's look ahead.
        direction = own.lerp(average, self._momentum).bfloat16()
        step = orthogonal(self._whole(parameter, direction), self._ns_steps)
        values = local(parameter)
        values.mul_(1 - self.lr * decay)
        size = 0.2 * math.sqrt(max(shape_of(parameter)))
        values.add_(_own(parameter, step), alpha=-self.lr * size)

    def _whole(self, parameter: Tensor, part: Tensor) -> Tensor:
        """The matrix of which this rank has a part, cut as the parameter is."""
        if isinstance(parameter, Piece):
            return parameter.assemble(part, self._total)
        whole = like(parameter, part)
        return whole.full_tensor() if isinstance(whole, DTensor) else whole


def _own(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a matrix, cut as the parameter is."""
    if isinstance(parameter, Piece):
        return parameter.own(whole)
    part, offsets = local_part(parameter)
    ends = (begin + length for begin, length in zip(offsets, part.shape, strict=True))
    return whole[tuple(map(slice, offsets, ends))]


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """Roughly U V' of the singular value decomposition U S V', in bfloat16, by Newton-Schulz.

    Singular values end near 1, not at it, which trains as well.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    # Largest singular value at most 1; the norm may be 0.
    x = x / x.norm().clamp(min=_TINY)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
