"""Results drawn from known laws."""

from collections.abc import Sequence

import numpy as np

from llm_pretrain.scaling.points import Point

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""As published by Hoffmann et al. (2022), approach 3."""
BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""The same data fitted again by Besiroglu et al. (2024)."""
SIZES = np.geomspace(3e7, 1e9, 8)
RATIOS = (3, 8, 20, 50, 150)
"""Tokens per parameter."""


def loss(law: dict[str, float], params: float, tokens: float) -> float:
    """Of a model by a law."""
    return law["E"] + law["A"] * params ** -law["alpha"] + law["B"] * tokens ** -law["beta"]


def points(
    law: dict[str, float] = HOFFMANN,
    *,
    noise: float = 0.0,
    seed: int = 0,
    sizes: Sequence[float] = tuple(SIZES),
    ratios: Sequence[float] = RATIOS,
    source: str = "cooldown",
) -> list[Point]:
    """Every size with every ratio; `noise` is the deviation of ln L, FLOPs are 6 N D."""
    rng = np.random.default_rng(seed)
    found = []
    for n in map(float, sizes):
        for ratio in ratios:
            d = n * ratio
            value = loss(law, n, d) * float(np.exp(noise * rng.standard_normal()))
            name = f"{n / 1e6:.0f}M"
            found.append(Point(f"{name}-{ratio:g}", name, n, d, value, 6 * n * d, source))
    return found
