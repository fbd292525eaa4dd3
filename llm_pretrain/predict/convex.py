"""The convex law: a power law in the two terms of the last-iterate bound."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.predict.history import Array, Case, History
from llm_pretrain.theory.bound import curve, moving

_DISTANCE, _NOISE = 0.02, 0.005
"""Terms of a constant rate of 1e-3 at step 25,000: units, so that the factors are nats."""


@dataclass(frozen=True)
class ConvexLaw:
    """L = floor + a (T1 / gamma)^p + b (gamma T2)^q, with the bound T1 / gamma + gamma T2.

    The bound is that of Schaipp et al. 2025 (arXiv 2501.18965; see theory/bound.py) for D = G = 1
    and the run's own rates; with p = q = 1 this is the bound itself, scaled.
    """

    title: str = "convex bound"
    names: tuple[str, ...] = ("floor", "log_a", "log_p", "log_b", "log_q")

    def prepare(self, cases: Sequence[Case], decay: float) -> tuple[Array, Array]:
        """Both terms of every case; the weight decay is no part of this law."""
        terms = np.empty((len(cases), 2))
        by_history: dict[History, list[int]] = {}
        for i, case in enumerate(cases):
            by_history.setdefault(case.history, []).append(i)
        for history, places in by_history.items():
            steps = sorted({cases[i].step for i in places})
            # An update at rate 0 has no place in the bound: it moves nothing.
            moved = [int(np.count_nonzero(history.rates[:step])) for step in steps]
            unique = sorted(set(moved))
            found = curve(moving(history.rates[: steps[-1]]), unique)
            for i in places:
                at = unique.index(moved[steps.index(cases[i].step)])
                terms[i] = found.distance[at] / _DISTANCE, found.noise[at] / _NOISE
        return terms[:, 0], terms[:, 1]

    def losses(self, values: Array, prepared: tuple[Array, Array]) -> Array:
        """Losses of shape (N,) in nats."""
        floor, a, p, b, q = values
        distance, noise = prepared
        return np.asarray(
            floor + np.exp(a) * distance ** np.exp(p) + np.exp(b) * noise ** np.exp(q)
        )
