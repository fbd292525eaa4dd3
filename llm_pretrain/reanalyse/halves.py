"""The bound's curve, fitted to the first half of real curves and judged by the second."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_pretrain.reanalyse.comparisons import is_share, model
from llm_pretrain.reanalyse.load import PaperRun, multipliers
from llm_pretrain.theory.fit import NAMES, Observed, fit

_WARMUPS = 5
"""The curve counts from this many lengths of the warmup on."""
_POINTS = 60
"""A curve is thinned to at most this many evaluations."""
_FEWEST = 2 * len(NAMES)
"""In the first half."""
_DRAWS = 16


@dataclass(frozen=True)
class Joined:
    """A validation curve from the start of training: that of a cooldown with its trunk's before."""

    title: str
    run: PaperRun
    steps: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def fitted(self) -> int:
        """How many of the evaluations are in the first half."""
        return sum(step <= self.run.total // 2 for step in self.steps)


@dataclass(frozen=True)
class Extrapolation:
    """What a fit to the first half says of the second."""

    title: str
    total: int
    falling: bool
    """Whether the rate falls, so not for a trunk."""
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    """Of 32 batches, nats."""
    curve: tuple[float, ...]
    """The fitted curve at all steps."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """The fit's own interval of 80 %."""
    fitted: int
    """How many evaluations were fitted; the others were predicted."""
    parameters: dict[str, float]
    scatter: float
    """Median distance of the fitted ones from the curve."""
    mean_error: float
    """Mean absolute error over the second half."""
    worst: float
    end_error: float
    """Predicted less measured at the last evaluation."""
    half_width: float
    """Half of the interval there."""
    unchanged: float
    """What `end_error` would be if the loss stayed as it was half-way."""


def selected(runs: Sequence[PaperRun]) -> list[Joined]:
    """Curves of each kind at the length and rate where most kinds were run: the trunk, cosines,
    a cooldown over 20 % and the longest one; and the trunk of the largest other model."""
    good = [run for run in runs if not run.diverged]
    homes: dict[tuple[object, ...], list[PaperRun]] = {}
    for run in good:
        homes.setdefault((*run.series, run.total, run.peak), []).append(run)
    rated = sorted(homes.values(), key=lambda own: (_kinds(own), own[0].total, own[0].peak))
    most = [own for own in rated if (_kinds(own), own[0].total) == _rank(rated[-1])]
    home = most[len(most) // 2]
    cooled = [run for run in home if run.kind == "cooldown" and run.shape == "linear"]
    chosen = [
        *(run for run in home if run.kind == "trunk"),
        *sorted((run for run in home if run.kind == "cosine"), key=lambda r: -r.floor)[:2],
        *[run for run in cooled if is_share(run)][:1],
        *sorted((run for run in cooled if not is_share(run)), key=lambda r: -r.cooldown)[:1],
    ]
    others = [run for run in good if run.kind == "trunk" and run.size != home[0].size]
    chosen += sorted(others, key=lambda r: (r.layers * r.width**2, r.total))[-1:]
    joined = [found for run in chosen if (found := _joined(run, good)) is not None]
    return [curve for curve in joined if curve.fitted >= _FEWEST]


def extrapolate(curve: Joined) -> Extrapolation:
    """Fit the first half and compare the second. Takes some seconds."""
    run, count = curve.run, curve.fitted
    rates = run.peak * multipliers(run)
    steps, losses = np.array(curve.steps), np.array(curve.losses)
    whole = Observed(rates, steps, losses)
    # The rates after the half must not be known to the fit in any way.
    first = Observed(rates[: steps[count - 1]], steps[:count], losses[:count])
    found = fit([first], draws=_DRAWS)
    drawn = found.predict(whole)
    low, high = found.band(whole)
    errors = drawn[count:] - losses[count:]
    return Extrapolation(
        title=curve.title,
        total=run.total,
        falling=run.kind != "trunk",
        steps=curve.steps,
        losses=curve.losses,
        curve=tuple(drawn.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        fitted=count,
        parameters=dict(zip(NAMES, found.values.tolist(), strict=True)),
        scatter=found.scatter,
        mean_error=float(np.mean(np.abs(errors))),
        worst=float(np.max(np.abs(errors))),
        end_error=float(errors[-1]),
        half_width=float(high[-1] - low[-1]) / 2,
        unchanged=float(losses[count - 1] - losses[-1]),
    )


def _rank(own: Sequence[PaperRun]) -> tuple[int, int]:
    return _kinds(own), own[0].total


def _kinds(own: Sequence[PaperRun]) -> int:
    return len({(run.kind, run.shape, run.floor, run.cooldown) for run in own})


def _title(run: PaperRun) -> str:
    what = {
        "trunk": "constant",
        "cosine": f"cosine to {100 * run.floor:g} %",
        "cooldown": f"{run.shape} cooldown, last {100 * run.cooldown / run.total:.3g} %",
    }[run.kind]
    return f"{model(run.size)}, {run.peak:g}, {what}"


def _joined(run: PaperRun, runs: Sequence[PaperRun]) -> Joined | None:
    """The curve of a run from the start, thinned; None where it or its trunk's is missing."""
    steps, losses = list(run.val.steps), list(run.val.losses)
    if not steps:
        return None
    if run.kind == "cooldown":
        trunks = [
            r for r in runs if r.kind == "trunk" and (*r.series, r.peak) == (*run.series, run.peak)
        ]
        if not trunks:
            return None
        trunk = max(trunks, key=lambda r: r.total).val
        before = [i for i, step in enumerate(trunk.steps) if step < steps[0]]
        steps = [trunk.steps[i] for i in before] + steps
        losses = [trunk.losses[i] for i in before] + losses
    kept = [
        i for i, step in enumerate(steps) if _WARMUPS * run.warmup <= step <= run.total and step
    ]
    # From the end, so that the last evaluation stays.
    kept = kept[:: -max(1, -(-len(kept) // _POINTS))][::-1]
    return Joined(_title(run), run, tuple(steps[i] for i in kept), tuple(losses[i] for i in kept))
