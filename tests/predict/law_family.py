"""Histories and observations that several test files make losses of."""

import numpy as np

from llm_pretrain.predict.history import Array, Case, History
from llm_pretrain.predict.law import Law
from llm_pretrain.predict.observe import Observation, curve_of, final
from llm_pretrain.predict.prior import shipped

DECAY = 0.1


def wsd(total: int, cooldown: int, peak: float = 1e-3, warmup: int = 100) -> History:
    """Linear warmup, constant, linear cooldown."""
    t = np.arange(total)
    down = np.clip((total - t) / max(cooldown, 1), 0, 1) if cooldown else np.ones(total)
    return History(peak * np.minimum((t + 1) / warmup, 1) * down)


def cosine(total: int, peak: float = 1e-3, warmup: int = 100) -> History:
    """Linear warmup, then a half cosine to zero."""
    t = np.arange(total)
    return History(peak * np.minimum((t + 1) / warmup, 1) * (1 + np.cos(np.pi * t / total)) / 2)


def trunk_steps(total: int) -> list[int]:
    """Steps of an evaluation every 200 updates."""
    return list(range(200, total + 1, 200))


def observations(
    trunk: History, curve: Array, ends: list[tuple[History, float]]
) -> list[Observation]:
    """A trunk's curve and final losses."""
    found = list(curve_of(trunk, trunk_steps(trunk.total), list(curve)))
    return found + [final(history, history.total, loss) for history, loss in ends]


def typical(law: Law) -> Array:
    """The prior's mean, for a model that ends at 3 nats."""
    return shipped(law).at(3.0)


def made(law: Law, values: Array, where: list[Case]) -> Array:
    """Losses as `law` has them."""
    return law.losses(values, law.prepare(where, DECAY))
