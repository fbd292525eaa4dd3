"""The bound fitted to measured losses: loss_t = offset + Omega_t with a model of gradient norms.

Schaipp et al. 2025 (arXiv 2501.18965; fit.py of their package) fit C + M Omega_t with D and
G_t = G1 exp(A1 t) + G2 t^A2 + B, by a Huber loss of 1e-3 on the logarithms. M cannot be told from D
and G, since M Omega(D, G) = Omega(sqrt(M) D, sqrt(M) G): here it is in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_pretrain.errors import UserError
from llm_pretrain.theory.bound import Array, cut_sums

NAMES = ("offset", "distance", "early", "early_rate", "power", "exponent", "floor")
"""C, D, G1, A1, G2, A2, B; steps count from 1, the unit of time of A1, G2 and A2."""
HUBER = 1e-3
"""Differences of logarithms above this count linearly: one bad evaluation moves little."""
_WITH_NORMS = (0, 1, 6)
_LOW = np.array([0, 0, 0, -1000, 0, -2, 0])
_HIGH = np.array([1, np.inf, np.inf, 0, np.inf, 1, np.inf])
"""Bounds and starts are in units that `_Design.units` chooses for the problem at hand."""
_STARTS = 16
"""The problem has local minima: fits begin at that many places, drawn between these two."""
_NEAR = np.array([0.3, 0.2, 0.0, -1.0, 0.0, -1.0, 0.0])
_FAR = np.array([0.95, 1.5, 2.0, 2.5, 1.5, 0.3, 1.0])
"""The fourth is the power of ten of the rate."""
_FINENESS = 0.03
"""Width of the stretches in which the norm counts as one, as a share of the steps before."""


@dataclass(frozen=True)
class Observed:
    """Losses of one run."""

    rates: Array
    """Learning rate of every update from the first: shape (T,)."""
    steps: npt.NDArray[np.int64]
    """Updates done at each evaluation, ascending, 1 to T. Leave out those of the warmup."""
    losses: Array
    """Loss there, in nats."""
    norms: Array | None = None
    """Measured gradient norms, shape (T,); then G_t is `floor` times these, and nothing else."""


@dataclass(frozen=True)
class Fit:
    """The fitted parameters, and others that resampled residuals gave."""

    values: Array
    """By NAMES."""
    draws: Array
    """The same from each resampling: shape (draws, 7)."""
    scatter: float
    """Median distance of the losses from the curve, in nats."""

    def value(self, name: str) -> float:
        """The parameter of that name in NAMES."""
        return float(self.values[NAMES.index(name)])

    def interval(self, name: str, level: float = 0.8) -> tuple[float, float]:
        """The range that holds the share `level` of the draws of a parameter."""
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(self.draws[:, NAMES.index(name)], tails)
        return float(low), float(high)

    def predict(self, run: Observed) -> Array:
        """The curve at the steps of a run, whose losses are not looked at: shape (len(steps),)."""
        return _design([run]).losses(self.values)

    def band(self, run: Observed, level: float = 0.8) -> Array:
        """Low and high end of the curves of the share `level` of the draws: shape (2, len(steps)).

        Uncertainty of the curve, given that the model is right; a loss also scatters around it.
        """
        design = _design([run])
        curves = np.stack([design.losses(draw) for draw in self.draws])
        ends: Array = np.quantile(curves, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return ends


def fit(runs: Sequence[Observed], *, draws: int = 100, seed: int = 0) -> Fit:
    """Fit one set of parameters to the losses of one or several runs.

    Uncertainty: residuals are drawn again in blocks of neighbours, since they are correlated, put
    on the fitted curve and fitted again, `draws` times. Raises UserError for input that cannot be
    used.
    """
    _check(runs)
    design = _design(runs)
    losses = np.concatenate([run.losses for run in runs])
    free = np.array(_WITH_NORMS if runs[0].norms is not None else range(len(NAMES)))
    units = design.units(losses)
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(_STARTS):
        near, _ = _solve(design, losses, _start(draw) * units, free, units, kind="linear")
        found.append(_solve(design, losses, near, free, units))
    values, _ = min(found, key=lambda pair: pair[1])
    curve = design.losses(values)
    residuals = np.split(np.log(losses / curve), np.cumsum([len(run.steps) for run in runs])[:-1])
    again = []
    for _ in range(draws):
        noise = np.concatenate([_resampled(part, draw) for part in residuals])
        again.append(_solve(design, curve * np.exp(noise), values, free, units)[0])
    scatter = float(np.median(np.abs(losses - curve)))
    return Fit(values, np.array(again).reshape(draws, len(NAMES)), scatter)


@dataclass(frozen=True)
class _Design:
    """What of the bound does not depend on the parameters."""

    lengths: Array
    """1 / (2 S_1) at each evaluation: shape (m,)."""
    weights: Array
    """What the square of the norm in each stretch of steps adds: shape (m, stretches)."""
    middles: Array
    """Middle of each stretch, in steps."""

    def losses(self, values: Array) -> Array:
        """The loss at each evaluation: shape (m,)."""
        offset, distance, early, _, power, _, floor = values
        decay, fall = self._shapes(values)
        norms = early * decay + power * fall + floor
        found: Array = offset + distance**2 * self.lengths + self.weights @ norms**2
        return found

    def slopes(self, values: Array) -> Array:
        """Derivatives of `losses` by the parameters: shape (m, 7)."""
        _, distance, early, _, power, _, floor = values
        decay, fall = self._shapes(values)
        norms = early * decay + power * fall + floor
        by_rate, by_exponent = early * self.middles * decay, power * np.log(self.middles) * fall
        inner = np.stack([decay, by_rate, fall, by_exponent, np.ones_like(norms)], axis=1)
        outer = 2 * self.weights @ (norms[:, None] * inner)  # (m, 5)
        return np.column_stack([np.ones_like(self.lengths), 2 * distance * self.lengths, outer])

    def _shapes(self, values: Array) -> tuple[Array, Array]:
        return np.exp(values[3] * self.middles), self.middles ** values[5]

    def units(self, losses: Array) -> Array:
        """What is about one of each parameter in this problem."""
        end = self.middles[-1]
        fall = float(np.max(losses) - np.min(losses)) or float(np.min(losses))
        distance = np.sqrt(fall / np.max(self.lengths))
        norm = np.sqrt(0.2 * np.min(losses) / float(np.max(np.sum(self.weights, axis=1))))
        return np.array([np.min(losses), distance, norm, 1 / end, norm, 1, norm])


def _stretches(total: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Where stretches of steps begin, 0-based, and their middles, 1-based, up to `total`."""
    edges = [0]
    while edges[-1] < total:
        edges.append(edges[-1] + 1 + int(_FINENESS * edges[-1]))
    begins, ends = np.array(edges[:-1]), np.minimum(edges[1:], total)
    return begins, (begins + 1 + ends) / 2


def _design(runs: Sequence[Observed]) -> _Design:
    begins, middles = _stretches(max(len(run.rates) for run in runs))
    count = sum(len(run.steps) for run in runs)
    lengths, weights = np.empty(count), np.zeros((count, len(begins)))
    row = 0
    for run in runs:
        squares = np.ones(len(run.rates)) if run.norms is None else run.norms**2
        for t, later in cut_sums(run.rates, run.steps):
            each = np.append(run.rates[: t - 1] ** 2 / later[1:], run.rates[t - 1]) * squares[:t]
            begun = begins[begins < t]
            lengths[row] = 1 / (2 * later[0])
            weights[row, : len(begun)] = np.add.reduceat(each, begun) / 2
            row += 1
    return _Design(lengths, weights, middles)


def _start(draw: np.random.Generator) -> Array:
    """Somewhere to begin, in units of the problem."""
    start = draw.uniform(_NEAR, _FAR)
    start[3] = -(10 ** start[3])
    return start


def _solve(
    design: _Design,
    losses: Array,
    start: Array,
    free: npt.NDArray[np.int64],
    units: Array,
    *,
    kind: str = "huber",
) -> tuple[Array, float]:
    """The parameters of the least loss near `start`, and that loss.

    From afar only squares ("linear") lead to the right valley.
    """
    from scipy.optimize import least_squares  # noqa: PLC0415  (not for --help)

    low, high = _LOW[free], _HIGH[free]
    values = np.zeros(len(NAMES))

    def residuals(scaled: Array) -> Array:
        values[free] = scaled * units[free]
        found: Array = np.log(design.losses(values) / losses)
        return found

    def slopes(scaled: Array) -> Array:
        values[free] = scaled * units[free]
        return design.slopes(values)[:, free] * units[free] / design.losses(values)[:, None]

    begin, bounds = np.clip(start[free] / units[free], low, high), (low, high)
    found = least_squares(residuals, begin, slopes, bounds, loss=kind, f_scale=HUBER, x_scale="jac")
    values[free] = found.x * units[free]
    return values, float(found.cost)


def _resampled(residuals: Array, draw: np.random.Generator) -> Array:
    """As many residuals, in blocks of neighbours from anywhere in the run."""
    count = len(residuals)
    block = max(1, round(count ** (1 / 3)))
    begins = draw.integers(0, count - block + 1, size=-(-count // block))
    drawn: Array = residuals[(begins[:, None] + np.arange(block)).reshape(-1)[:count]]
    return drawn


def _check(runs: Sequence[Observed]) -> None:
    if not runs or len({run.norms is None for run in runs}) > 1:
        raise UserError("runs: needs at least one, and measured norms for all of them or for none")
    count = sum(len(run.steps) for run in runs)
    if count < 2 * len(NAMES):
        raise UserError(
            f"runs: {count} losses; a fit of {len(NAMES)} numbers needs {2 * len(NAMES)} or more"
        )
    for run in runs:
        if len(run.steps) != len(run.losses):
            raise UserError(f"losses: {len(run.losses)} for {len(run.steps)} steps; needs as many")
        if run.norms is not None and len(run.norms) != len(run.rates):
            raise UserError(f"norms: {len(run.norms)} for {len(run.rates)} updates; needs as many")
        for name in ("rates", "losses", "norms"):
            values = getattr(run, name)
            good = values is None or (values > 0) & (values < np.inf)
            if not np.all(good):
                first = int(np.argmin(good))
                raise UserError(
                    f"{name}[{first}]: {values[first]:g}; needs positive numbers. Updates at rate "
                    "0 change nothing: leave them out"
                )
