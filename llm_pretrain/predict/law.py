"""What a law of the loss is: a formula with parameters, for cases prepared once."""

from collections.abc import Sequence
from typing import Any, Protocol

from llm_pretrain.predict.history import Array, Case


class Law(Protocol):
    """A formula for the loss after any history of learning rates.

    Every parameter may take any real value (positive quantities are given by their logarithm), so
    that a fit needs no bounds. The first is always "floor", the loss that nothing undercuts, in
    nats.
    """

    @property
    def title(self) -> str:
        """Its name in a table."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order of `losses`."""

    def prepare(self, cases: Sequence[Case], decay: float) -> Any:
        """What `losses` needs of the cases and of the weight decay of the optimizer."""

    def losses(self, values: Array, prepared: Any) -> Array:
        """Loss in nats of each prepared case, shape (N,), for parameters of shape (P,)."""


def named(law: Law, values: Array) -> dict[str, float]:
    """The parameters by name."""
    return dict(zip(law.names, values.tolist(), strict=True))
