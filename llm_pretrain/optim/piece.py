"""Parameters that ranks cut as one flat row, as ZeRO does."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks of the run; it may do so in place. All ranks call together."""


class Piece(nn.Parameter):
    """The stretch of a flattened parameter that this rank updates, (n,); n may be 0.

    It is a view of the values that it is made of. What is computed from it is a plain tensor.
    """

    whole: torch.Size
    """The shape of the whole parameter."""
    begin: int
    """Index in the flattened parameter at which the stretch begins."""

    def __new__(cls, values: Tensor, _whole: torch.Size, _begin: int) -> "Piece":
        """A view of `values`."""
        return super().__new__(cls, values.detach())

    def __init__(self, _values: Tensor, whole: torch.Size, begin: int) -> None:
        super().__init__()
        self.whole, self.begin = whole, begin

    def assemble(self, values: Tensor, total: Total) -> Tensor:
        """The whole tensor, on every rank, of which each has `values` like its piece.

        The sum of what is 0 elsewhere, so exact in any type.
        """
        whole = values.new_zeros(self.whole.numel())
        whole[self.begin : self.begin + values.numel()] = values
        return total(whole).view(self.whole)

    def own(self, whole: Tensor) -> Tensor:
        """This rank's stretch of a tensor like the whole parameter."""
        return whole.reshape(-1)[self.begin : self.begin + self.numel()]


def shape_of(parameter: Tensor) -> torch.Size:
    """Of the whole parameter, however it is cut."""
    return parameter.whole if isinstance(parameter, Piece) else parameter.shape
