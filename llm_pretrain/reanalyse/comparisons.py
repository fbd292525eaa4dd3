"""Final losses side by side: repeated runs, cosine and WSD, the two shapes of a cooldown."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from llm_pretrain.predict.observe import REPEAT
from llm_pretrain.reanalyse.load import PaperRun

SHARE = 0.2
"""Of a run: the length of the cooldowns that are compared."""
COSINE_FLOOR = 0.1
WHOLE, FEW = "whole set", "32 batches"
"""What the losses were measured on."""
_MODELS = {
    (8, 384): "33M",
    (8, 512): "53M",
    (10, 512): "60M",
    (12, 640): "93M",
    (12, 768): "124M",
    (16, 768): "151M",
    (24, 768): "210M",
    (24, 1024): "360M",
}
"""The papers' names of their models, by layers and width."""


def model(size: tuple[int, int]) -> str:
    """What the papers call a model: 124M; another one by its layers and width."""
    return _MODELS.get(size, f"{size[0]} layers of width {size[1]}")


@dataclass(frozen=True)
class Repeats:
    """How much the final losses of runs differ that should be equal."""

    pairs: int
    """Runs of the file that repeat another one."""
    mean: float | None
    """Mean absolute difference in these pairs, nats."""
    largest: float | None
    deviation: float
    """Standard deviation between repetitions that is used: that of the authors' 16 pairs, most of
    which are not in the file; they differ by 0.0015 on average and 0.0038 at most."""
    clear: float
    """A difference of two runs above it, twice its standard deviation, is taken for real."""


def repeats(runs: Sequence[PaperRun]) -> Repeats:
    """The pairs of runs in `runs` with equal settings and different names."""
    groups = _grouped(runs, lambda r: (r.size, r.peak, r.kind, r.shape, *_lengths(r)))
    gaps = [
        abs(_loss(one) - _loss(other))
        for own in groups
        for one, other in combinations(own, 2)
        if one.name != other.name
    ]
    mean = math.fsum(gaps) / len(gaps) if gaps else None
    clear = 2 * math.sqrt(2) * REPEAT
    return Repeats(len(gaps), mean, max(gaps, default=None), REPEAT, clear)


@dataclass(frozen=True)
class Best:
    """The run with the lowest final loss over the peak rates that were tried."""

    loss: float
    peak: float
    rates: int
    """How many were tried."""


@dataclass(frozen=True)
class Horizon:
    """Cosine and WSD of one model, series and length."""

    model: str
    total: int
    """Updates."""
    sample: str
    """What the losses were measured on: whole set, or 32 batches where that is missing."""
    cosine: Best
    """Down to 10 % of the peak."""
    wsd: Best
    """A linear cooldown over the last 20 %."""
    difference: float
    """Of WSD less cosine, nats."""
    cosine_to_zero: Best | None
    wsd_sqrt: Best | None
    """A cooldown of the shape 1-sqrt over the last 20 %."""


def cosine_and_wsd(runs: Sequence[PaperRun]) -> list[Horizon]:
    """Every length at which a series has both, by model and length.

    A run counts with the loss after its last update; a cosine's losses on the way to a longer
    horizon are not those of a shorter run.
    """
    groups: dict[tuple[Hashable, ...], list[PaperRun]] = {}
    for run in runs:
        if not run.diverged and run.kind != "trunk":
            groups.setdefault((*run.series, run.total), []).append(run)
    ordered = sorted(groups.items(), key=lambda item: tuple(map(float, item[0])))  # type: ignore[arg-type]
    return [found for _, own in ordered if (found := _horizon(own)) is not None]


@dataclass(frozen=True)
class Shapes:
    """A linear and a 1-sqrt cooldown that are otherwise equal."""

    model: str
    peak: float
    total: int
    cooldown: int
    linear: float
    sqrt: float
    difference: float
    """Of 1-sqrt less linear, nats."""


def sqrt_and_linear(runs: Sequence[PaperRun]) -> list[Shapes]:
    """Every pair, by model, length and rate."""
    cooled = [run for run in runs if run.kind == "cooldown"]
    found = []
    for own in _grouped(cooled, lambda r: (r.size, r.typed, r.total, r.peak, r.cooldown)):
        shaped = {run.shape: run for run in own}
        if len(shaped) == 2:
            linear, sqrt = _loss(shaped["linear"]), _loss(shaped["1-sqrt"])
            run = own[0]
            sizes = (model(run.size), run.peak, run.total, run.cooldown)
            found.append((run.size, Shapes(*sizes, linear, sqrt, sqrt - linear)))
    found.sort(key=lambda pair: (pair[0], pair[1].total, pair[1].peak))
    return [shapes for _, shapes in found]


def is_share(run: PaperRun, share: float = SHARE) -> bool:
    """Whether its cooldown takes this share of a run, to whole updates."""
    return run.kind == "cooldown" and abs(run.cooldown - share * run.total) < 1


def _horizon(own: Sequence[PaperRun]) -> Horizon | None:
    parts = [
        [r for r in own if r.kind == "cosine" and r.floor == COSINE_FLOOR],
        [r for r in own if is_share(r) and r.shape == "linear"],
        [r for r in own if r.kind == "cosine" and r.floor == 0],
        [r for r in own if is_share(r) and r.shape == "1-sqrt"],
    ]
    if not parts[0] or not parts[1]:
        return None
    measured = [[r for r in part if r.final is not None] for part in parts]
    if measured[0] and measured[1]:
        sample, losses = WHOLE, [[(_loss(r), r.peak) for r in part] for part in measured]
    else:
        sample, last = FEW, min(r.val.steps[-1] for r in (*parts[0], *parts[1]))
        at = [[(r.val.at(last), r.peak) for r in part] for part in parts]
        losses = [[(loss, peak) for loss, peak in part if loss is not None] for part in at]
    cosine, wsd, zero, sqrt = (_best(part) for part in losses)
    if cosine is None or wsd is None:
        return None
    gap = wsd.loss - cosine.loss
    return Horizon(model(own[0].size), own[0].total, sample, cosine, wsd, gap, zero, sqrt)


def _best(losses: Sequence[tuple[float, float]]) -> Best | None:
    if not losses:
        return None
    loss, peak = min(losses)
    return Best(loss, peak, len({rate for _, rate in losses}))


def _grouped(
    runs: Sequence[PaperRun], key: Callable[[PaperRun], Hashable]
) -> Iterator[list[PaperRun]]:
    """Runs with a final loss, of those that did not fail, with equal keys."""
    groups: dict[Hashable, list[PaperRun]] = {}
    for run in runs:
        if run.final is not None and not run.diverged:
            groups.setdefault(key(run), []).append(run)
    yield from groups.values()


def _lengths(run: PaperRun) -> tuple[Hashable, ...]:
    return run.total, run.cooldown, run.warmup, run.floor, run.tokens_per_step


def _loss(run: PaperRun) -> float:
    if run.final is None:
        raise ValueError(f"{run.name} has no final loss")
    return run.final
