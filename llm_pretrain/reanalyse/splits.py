"""What is fitted and what is predicted: the tests of the loss predictor, fixed before any fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from llm_pretrain.predict.observe import Observation
from llm_pretrain.reanalyse.load import PaperRun
from llm_pretrain.reanalyse.priors import curve, finals

NEAR = 25_000
"""Steps: runs up to here are fitted, longer ones predicted."""


@dataclass(frozen=True)
class Split:
    """One fit and the losses it is to predict."""

    title: str
    """The question asked; splits of one title are counted together."""
    detail: str
    size: tuple[int, int]
    """Layers and width of the models in it; their runs must have no part in the prior."""
    fitted: tuple[Observation, ...]
    held_out: tuple[Observation, ...]


@dataclass(frozen=True)
class _Data:
    """All there is at one rate of one size."""

    size: tuple[int, int]
    finals: tuple[Observation, ...]
    known: tuple[Observation, ...]
    """With the curve of the trunk."""


def splits(runs: Sequence[PaperRun]) -> list[Split]:
    """All that have something to fit and something to predict, by title."""
    good = [run for run in runs if not run.diverged]
    found = [*_horizons(good), *_rates(good), *_longest(good)]
    return sorted((s for s in found if s.fitted and s.held_out), key=lambda s: s.title)


def _horizons(runs: Sequence[PaperRun]) -> Iterator[Split]:
    """Longer runs at the rate of the trunk, where there is a full grid of them."""
    for size, trunk, own in _grids(runs):
        near = _all(r for r in own if r.kind == "cooldown" and r.total <= NEAR)
        far = [o for o in _all(own) if o.case.step > NEAR]
        full = [o for o in far if o.case.history is not trunk.history]
        cosines = [o for o in _all(r for r in own if r.kind == "cosine") if o.case.step <= NEAR]
        fifths = sorted((r for r in own if r.cooldown == r.total // 5), key=lambda r: r.total)
        one = fifths[:1]
        first = one[0].total if one else 0
        rest = [o for o in _all(r for r in own if r not in one) if o.case.step >= first]
        rate = f"{trunk.peak:g}"
        before = tuple(curve(trunk, NEAR))
        whole = tuple(curve(trunk))
        yield Split("H1 longer, trunk known", rate, size, (*near, *whole), tuple(full))
        yield Split("H2 longer, trunk to 25k", rate, size, (*near, *before), tuple(far))
        yield Split("H3 cosine, trunk to 25k", rate, size, (*near, *before), tuple(cosines))
        yield Split("H4 one cooldown known", rate, size, (*_all(one), *before), tuple(rest))
        yield Split("H5 no cooldown yet", rate, size, before, tuple(_all(own)))


def _rates(runs: Sequence[PaperRun]) -> Iterator[Split]:
    """Another peak rate, from two rates and from one; low rates apart."""
    data = {
        trunk.peak: _Data(size, tuple(_all(own)), (*_all(own), *curve(trunk)))
        for size, trunk, own in _grids(runs)
    }
    usual = [rate for rate in data if rate >= 5e-4]
    for target in usual:
        others = [rate for rate in usual if rate != target]
        for title, count in (("R1 a third rate from two", 2), ("R2 another rate from one", 1)):
            for some in combinations(others, count):
                yield _to_rate(title, data, some, target)
    if len(data) > len(usual):
        low = min(data)
        yield _to_rate("R3 a fifth of the least rate", data, usual, low)
        yield _to_rate("R4 from a low rate too", data, sorted(data)[:-1], max(data))


def _to_rate(
    title: str, data: Mapping[float, _Data], some: Sequence[float], target: float
) -> Split:
    fitted = tuple(o for rate in some for o in data[rate].known)
    names = ", ".join(f"{rate:g}" for rate in some)
    held_out = data[target].finals
    return Split(title, f"{names} to {target:g}", data[target].size, fitted, held_out)


def _longest(runs: Sequence[PaperRun]) -> Iterator[Split]:
    """The longest cooldowns of every trunk from the shorter ones; cosines at twice its rate."""
    for trunk in (run for run in runs if run.kind == "trunk"):
        family = [r for r in runs if r.series == trunk.series]
        cooled = [r for r in family if r.kind == "cooldown" and r.peak == trunk.peak]
        ends = sorted({r.total for r in cooled})
        detail = f"{trunk.layers}x{trunk.width}, {trunk.peak:g}"
        if len(ends) > 1:
            longest = tuple(_all(r for r in cooled if r.total == ends[-1]))
            shorter = tuple(_all(r for r in cooled if r.total < ends[-1]))
            whole, before = tuple(curve(trunk)), tuple(curve(trunk, ends[-2]))
            yield Split("L1 longest, trunk known", detail, trunk.size, shorter + whole, longest)
            yield Split("L2 longest, trunk cut", detail, trunk.size, shorter + before, longest)
        cosines = tuple(_all(r for r in family if r.kind == "cosine" and r.peak > trunk.peak))
        if not _has_grid(runs, trunk):
            known = (*_all(cooled), *curve(trunk))
            yield Split("C1 cosine at twice the rate", detail, trunk.size, known, cosines)


def _grids(runs: Sequence[PaperRun]) -> list[tuple[tuple[int, int], PaperRun, list[PaperRun]]]:
    """Size, trunk and all runs of each rate at which cooldowns of many lengths were run."""
    trunks = [run for run in runs if run.kind == "trunk" and _has_grid(runs, run)]
    longest = {(t.size, t.peak): t for t in sorted(trunks, key=lambda t: t.total)}
    return [
        (t.size, t, [r for r in runs if (r.size, r.peak) == (t.size, t.peak)])
        for t in longest.values()
    ]


def _has_grid(runs: Sequence[PaperRun], trunk: PaperRun) -> bool:
    lengths = {
        r.cooldown / r.total
        for r in runs
        if r.kind == "cooldown" and (r.size, r.peak) == (trunk.size, trunk.peak)
    }
    return len(lengths) > 3


def _all(runs: Iterable[PaperRun]) -> list[Observation]:
    return [o for run in runs for o in finals(run)]
