"""Recipes, which only have to be told apart."""

from dataclasses import dataclass


class Recipe:
    """Base of all."""

    def delayed(self) -> bool:
        """Whether scales come from earlier passes."""
        return isinstance(self, DelayedScaling)


@dataclass
class DelayedScaling(Recipe):
    """Scales from a history of largest values."""

    margin: int = 0
    amax_history_len: int = 1024
    amax_compute_algo: str = "max"
    reduce_amax: bool = True


@dataclass
class Float8CurrentScaling(Recipe):
    """Scales from the tensors themselves."""


@dataclass
class Float8BlockScaling(Recipe):
    """A scale for each block."""

    x_block_scaling_dim: int = 1
    w_block_scaling_dim: int = 2
