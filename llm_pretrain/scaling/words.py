"""Laws in words, the same on pages and in the terminal."""

import math
from collections.abc import Sequence

from llm_pretrain.report.words import plural, signed
from llm_pretrain.scaling.interval import Estimate
from llm_pretrain.scaling.laws import Laws, Optimum
from llm_pretrain.scaling.leave import LeftOut
from llm_pretrain.scaling.parametric import Parametric, TokensOnly
from llm_pretrain.scaling.points import Excluded

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_METHODS = {
    "parametric": "the law (approach 3)",
    "envelope": "the envelope (approach 1)",
    "isoflop": "IsoFLOP minima (approach 2)",
}
INTERVALS = (
    "Intervals hold 95%, by a parametric bootstrap of the residuals: normal errors with the "
    "deviation of the residuals, widened by Student's t for the few degrees of freedom, are added "
    "to the fitted logarithms of losses, and each set is fitted again. No runs are drawn. The "
    "intervals know the noise of the runs and not whether the form is right: the errors on what "
    "was left out tell that. Open: at this end the fits run into the bound of the search, so the "
    "results set no limit."
)


def amount(value: float) -> str:
    """Parameters or tokens with three digits: 124M, 2.56B."""
    for size, suffix in _UNITS:
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def interval(found: Estimate, form: str = ".4g") -> str:
    """1.69 (1.65 to 1.72)."""
    return f"{found.value:{form}} ({_end(found.low, form)} to {_end(found.high, form)})"


def amounts(found: Estimate) -> str:
    """124M (110M to 140M)."""
    low, high = (_open(end) or amount(end or 0) for end in (found.low, found.high))
    return f"{amount(found.value)} ({low} to {high})"


def law(laws: Laws) -> list[str]:
    """What was fitted, a sentence or two each."""
    sentences = []
    if laws.parametric:
        fitted = laws.parametric
        sentences.append(
            f"L(N, D) = {fitted.E.value:.4g} + {fitted.A.value:.4g} N^-{fitted.alpha.value:.4g} + "
            f"{fitted.B.value:.4g} D^-{fitted.beta.value:.4g} from {plural(fitted.count, 'result')}"
            f"; {_fit(fitted)}"
        )
    for one in laws.tokens_only if not laws.parametric else ():
        sentences.append(
            f"{one.size}: a law in tokens only, L(D) = {interval(one.E)} + {one.B.value:.4g} "
            f"D^-beta, beta {interval(one.beta)}, from {plural(one.count, 'result')}; {_fit(one)}"
        )
    parts = {"parametric": laws.parametric, "envelope": laws.envelope, "isoflop": laws.isoflop}
    exponents = [(_METHODS[name], part.exponent) for name, part in parts.items() if part]
    if exponents:
        said = "; ".join(f"{interval(value, '.3f')} by {name}" for name, value in exponents)
        sentences.append(f"The best N grows as C^a with a = {said}.")
    return sentences


def parameters(laws: Laws) -> list[tuple[str, str]]:
    """Names and values with intervals, of the parametric law."""
    found = laws.parametric
    if not found:
        return []
    edge = dict.fromkeys(found.loose, ", at the edge of the search")
    names = ("E", "A", "B", "alpha", "beta")
    return [(name, interval(getattr(found, name)) + edge.get(name, "")) for name in names]


def cost(laws: Laws) -> str:
    """What a FLOP is in these laws."""
    found = laws.cost
    if math.isclose(found.factor, 6, rel_tol=1e-6) and math.isclose(found.power, 1, rel_tol=1e-6):
        return "FLOPs: C = 6 N D."
    return (
        f"FLOPs: as the results count them, for budgets as C = {found.factor:.4g} N^"
        f"{found.power:.4g} D, which is off by {100 * found.worst:.1f}% at most."
    )


def optimum(found: Optimum) -> str:
    """One budget by one method."""
    loss = f", loss {interval(found.loss)}" if found.loss else ""
    far = f"; {found.beyond:.3g} times the largest run's" if found.beyond > 1 else ""
    return (
        f"{found.flops:.3g} FLOPs by {_METHODS[found.method]}: N {amounts(found.params)}, D "
        f"{amounts(found.tokens)}, {found.tokens.value / found.params.value:.3g} tokens a parameter"
        f"{loss}{far}.{_edge(found.loose)}"
    )


def left_out(laws: Laws) -> list[str]:
    """Errors on what was left out, a sentence a kind."""
    sentences = []
    for kind, noun in (("size", "size"), ("horizon", "horizon")):
        own = [one for one in laws.left_out if one.kind == kind]
        if not own:
            continue
        count = sum(one.count for one in own)
        mean = math.fsum(one.mean_absolute * one.count for one in own) / count
        text = f"With one {noun} left out at a time, its losses are missed by {mean:.4f} nats on "
        text += f"average and {max(one.worst for one in own):.4f} at most"
        last = next((one for one in own if one.beyond), None)
        if last:
            text += f"; the largest, {last.name}, by {signed(last.mean)}"
        sentences.append(f"{text}.")
    return sentences


def left_out_row(one: LeftOut) -> list[str]:
    """A row of the table."""
    name = f"{one.name} (extrapolated)" if one.beyond else one.name
    errors = [f"{one.mean_absolute:.4f}", f"{one.worst:.4f}"]
    return [name, str(one.count), signed(one.mean), *errors]


def excluded(found: Sequence[Excluded]) -> list[str]:
    """Every run that is no part of the fit."""
    return [f"left out: {one.run}: {one.reason}" for one in found]


def grouped(found: Sequence[Excluded]) -> list[str]:
    """The same with a line a reason, for where there are many."""
    by_reason: dict[str, list[str]] = {}
    for one in found:
        by_reason.setdefault(one.reason, []).append(one.run)
    return [f"left out: {', '.join(runs)}: {reason}" for reason, runs in by_reason.items()]


def _fit(found: Parametric | TokensOnly) -> str:
    """How close a law is to its results, and what they do not hold of it."""
    share = f"{100 * found.deviation:.2f}% of the loss"
    worst = f"{signed(found.worst.error)} nats at worst ({found.worst.run})"
    return f"residuals of {share}, {worst}.{_edge(found.loose)}"


def _edge(loose: Sequence[str]) -> str:
    if not loose:
        return ""
    return f" At the edge of the search, so not held by these points: {', '.join(loose)}."


def _end(end: float | None, form: str) -> str:
    return _open(end) or f"{end:{form}}"


def _open(end: float | None) -> str:
    return "open" if end is None else ""
