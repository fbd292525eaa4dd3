"""The angular law: a functional scaling law in the angle by which AdamW turns the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llm_pretrain.predict.history import Array, Case, Stretches, remaining

_TURN = 0.05
"""Unit of the angle per update, radians; a steady 1e-3 at weight decay 0.1 gives about 0.014."""
_COUNT = 1000.0
"""Unit of updates."""


@dataclass
class Rotation:
    """The squared norm of the weights along each case, for any initial value.

    With updates of size eta per weight, at random directions, and decoupled weight decay lambda,
    the mean square V of the weights follows V <- (1 - eta lambda)^2 V + eta^2 (up to a constant,
    taken into V). It is linear in its initial value: V = V0 fade + grown.
    """

    stretches: Stretches
    _known: dict[float, tuple[Array, Array]] = field(default_factory=dict)

    def parts(self, decay: float) -> tuple[Array, Array]:
        """`fade` and `grown` in the middle of every stretch, shape (N, STRETCHES) each."""
        if decay not in self._known:
            # A fit asks for one decay many times in a row, and for its neighbours once.
            self._known = {decay: self._computed(decay)}
        return self._known[decay]

    def turns(self, decay: float, initial: float) -> Array:
        """Angle per update in every stretch, eta / sqrt(V), in units of 0.05 radians."""
        fade, grown = self.parts(decay)
        turns: Array = self.stretches.rates / np.sqrt(initial * fade + grown) / _TURN
        return turns

    def _computed(self, decay: float) -> tuple[Array, Array]:
        lengths, rates = self.stretches.lengths, self.stretches.rates
        shrink = 2 * decay * rates * lengths
        fade = np.exp(shrink / 2 - np.cumsum(shrink, axis=1))
        # Half a stretch, twice: V at its middle is what it turns by. (1 - e^-x) / x is 1 at 0.
        half = np.maximum(shrink / 2, 1e-12)
        factor, step = np.exp(-half), rates**2 * lengths / 2 * -np.expm1(-half) / half
        grown, value = np.empty_like(rates), np.zeros(len(rates))
        for j in range(rates.shape[1]):
            value = value * factor[:, j] + step[:, j]
            grown[:, j] = value
            value = value * factor[:, j] + step[:, j]
        return fade, grown


@dataclass(frozen=True)
class Prepared:
    """Cases, ready for the law."""

    stretches: Stretches
    rotation: Rotation
    decay: float


@dataclass(frozen=True)
class AngularLaw:
    """L = floor + A P^-alpha + B N^q: progress and noise in the angle turned.

    The form is the functional scaling law of Li et al. 2025 (arXiv 2509.19189, NeurIPS 2025): a
    power of the intrinsic time, and the noise of every update, forgotten as later updates go by:

        P = sum_k w'_k / (1 + s w'_k^2),    N = sum_k w_k^2 c (1 + c w_k^-g Theta_k)^-beta,
        Theta_k = sum_{j >= k} w_j.

    What differs: time is counted by the angle per update, w = eta / sqrt(V), not by the rate.
    Weight decay holds the norm of the weights, sqrt(V), in an equilibrium that grows with the rate
    (Kosson et al. 2023, arXiv 2305.17212: w -> sqrt(2 eta lambda) for AdamW), reached after about
    1 / (2 eta lambda) updates. This is what makes one law hold at several peak rates: between runs
    the angle grows with the root of the rate, within a cooldown with the rate itself.

    Ours, found on the runs of Hägele et al. 2024: the power q of the noise (the bound of Schaipp et
    al. 2025 as a power law has one too), the slower forgetting of larger turns (g, as the exponent
    gamma of the Multi-Power Law of Luo et al. 2025), the saturation s of the progress of large
    turns, and that progress has an initial norm of its own, w' = eta / sqrt(V'). The effective
    decay may differ from the optimizer's, as embeddings are not decayed.
    """

    title: str = "angular"
    names: tuple[str, ...] = (
        "floor",
        "log_progress",  # A
        "log_alpha",
        "log_noise",  # B
        "log_q",
        "log_memory",  # c
        "log_beta",
        "calming",  # g
        "log_norm",  # V0
        "log_progress_norm",  # V0' / V0
        "log_saturation",  # s
        "log_decay",  # effective over nominal
    )

    def prepare(self, cases: Sequence[Case], decay: float) -> Prepared:
        """Cut the histories; `decay` is the optimizer's weight decay."""
        stretches = Stretches.of(cases)
        return Prepared(stretches, Rotation(stretches), decay)

    def losses(self, values: Array, prepared: Prepared) -> Array:
        """Losses of shape (N,) in nats."""
        floor, amount, alpha, noise, power, memory, beta, calming = values[:8]
        norm, progress_norm, saturation, decay = values[8:]
        lengths = prepared.stretches.lengths / _COUNT
        effective = prepared.decay * float(np.exp(decay))
        turns = prepared.rotation.turns(effective, float(np.exp(norm)))
        angles = lengths * turns
        later = remaining(angles) - angles / 2
        forgotten = (1 + np.exp(memory) * later * turns**-calming) ** -np.exp(beta)
        stirred = np.exp(memory) * np.sum(angles * turns * forgotten, axis=1)
        leading = prepared.rotation.turns(effective, float(np.exp(norm + progress_norm)))
        moved = np.sum(lengths * leading / (1 + np.exp(saturation) * leading**2), axis=1)
        losses: Array = (
            floor
            + np.exp(amount) * moved ** -np.exp(alpha)
            + np.exp(noise) * stirred ** np.exp(power)
        )
        return losses
