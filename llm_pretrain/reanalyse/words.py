"""What each section found, in sentences made from its numbers."""

from collections.abc import Sequence

from llm_pretrain.reanalyse.analysis import Analysis
from llm_pretrain.reanalyse.comparisons import Best, Horizon, Repeats
from llm_pretrain.reanalyse.predictor import CHOSEN
from llm_pretrain.reanalyse.score import Summary
from llm_pretrain.report.words import DASH, count, plural, signed

SOURCE = (
    "Data: training logs of Hägele et al. 2024 (arXiv 2405.18392) and Schaipp et al. 2025 (arXiv "
    "2501.18965), published with github.com/fabian-sp/lr-scheduling under the MIT licence, "
    "Copyright (c) 2025 Fabian Schaipp, Alexander Hägele. Llama-style models, AdamW, SlimPajama; "
    "losses in nats per token."
)
NONE = "No runs in this file to compare."


def noise(found: Repeats) -> str:
    """How much repeated runs differ, and from where that is known."""
    said = (
        "Repeated runs, equal in everything that is recorded, differ by 0.0015 nats on average and "
        "0.0038 at most, in the 16 pairs among all logs that the authors published. "
    )
    if found.mean is None or found.largest is None:
        said += "This file has none of these pairs. "
    else:
        pairs = plural(found.pairs, "repeated pair")
        said += f"In this file: {pairs}, {found.mean:.4f} on average, {found.largest:.4f} at most. "
    return (
        f"{said}Differences of two runs above {found.clear:.4f} nats, two standard deviations, are "
        "taken for real here; smaller ones count as noise. The lowest of several rates is also "
        "chosen by its noise."
    )


def cosine_and_wsd(analysis: Analysis) -> str:
    """Section 1."""
    rows, clear = analysis.cosine_and_wsd, analysis.repeats.clear
    if not rows:
        return NONE
    swept = [row for row in rows if min(row.cosine.rates, row.wsd.rates) > 1]
    single = [row for row in rows if row not in swept]
    parts = []
    if single:
        parts.append(
            "With one rate for each (the authors' choice, WSD at half the rate of cosine), "
            f"{_versus(single, clear)}."
        )
    if swept:
        parts.append(f"With several rates for each and the best one kept, {_versus(swept, clear)}.")
    return " ".join(parts)


def cosine_to_zero(analysis: Analysis) -> str:
    """Section 1, how much of the difference is the cosine's end; empty without such runs."""
    clear = analysis.repeats.clear
    zeros = [(r, r.cosine_to_zero) for r in analysis.cosine_and_wsd if r.cosine_to_zero]
    if not zeros:
        return ""
    gaps = [r.wsd.loss - zero.loss for r, zero in zeros]
    below, above = sum(gap < -clear for gap in gaps), sum(gap > clear for gap in gaps)
    return (
        f"Against a cosine down to zero, not to 10 %, WSD is clearly lower at {below} and clearly "
        f"higher at {above} of {plural(len(gaps), 'horizon')} ({_signed_range(gaps)})."
    )


def sqrt_and_linear(analysis: Analysis) -> str:
    """Section 2."""
    rows, clear = analysis.sqrt_and_linear, analysis.repeats.clear
    if not rows:
        return NONE
    below = [row for row in rows if row.difference < -clear]
    above = [row for row in rows if row.difference > clear]
    least, most = (pick(rows, key=lambda r: r.difference) for pick in (min, max))
    return (
        f"1-sqrt ends clearly below linear in {len(below)} of {len(rows)} pairs and clearly above "
        f"in {len(above)}. The difference goes from {signed(most.difference)} nats at rate "
        f"{most.peak:g} and {count(most.total)} steps to {signed(least.difference)} at rate "
        f"{least.peak:g} and {count(least.total)} steps."
    )


def best_rates(analysis: Analysis) -> str:
    """Section 3."""
    found = analysis.best_rates
    if not found.entries or found.slope is None or found.mean_gap is None:
        return NONE
    last = max(found.entries, key=lambda entry: entry.total)
    own = [e for e in found.entries if (e.model, e.total) == (last.model, last.total)]
    ends = min(own, key=lambda e: e.share), max(own, key=lambda e: e.share)
    judged = [(e.theory, e.log_ratio_range) for e in found.entries if e.theory]
    known = [(theory, span) for theory, span in judged if span]
    inside = sum(low <= theory <= high for theory, (low, high) in known)
    span = found.slope_range
    within = f" (80 % interval {span[0]:.2f} to {span[1]:.2f})" if span else ""
    return (
        f"The longer the cooldown, the higher the best rate, as the theory says: {last.model} over "
        f"{count(last.total)} steps, {ends[0].rate:.2g} for a cooldown of {ends[0].share:.0%} and "
        f"{ends[1].rate:.2g} for {ends[1].share:.0%}. The theory's log ratio lies in the 80 % "
        f"interval of {inside} of {len(known)} ({found.mean_gap:.2f} off on average), and measured "
        f"log rates change {found.slope:.2f} times as much as the theory's{within}."
    )


def halves(analysis: Analysis) -> str:
    """Section 4."""
    found = analysis.halves
    if not found:
        return "No curve in this file is long enough."
    parts = {
        "where the rate falls": [abs(e.end_error) for e in found if e.falling],
        "where it stays constant": [abs(e.end_error) for e in found if not e.falling],
    }
    misses = " and ".join(
        f"by {sum(errors) / len(errors):.3f} nats on average {where}"
        for where, errors in parts.items()
        if errors
    )
    outside = sum(abs(e.end_error) > e.half_width for e in found)
    return (
        f"Fitted to the first half, the bound misses the last loss {misses}. The fit's own 80 % "
        f"interval misses that loss in {outside} of {plural(len(found), 'curve')}: it knows the "
        "uncertainty of the parameters, not that of the model."
    )


def predictor(analysis: Analysis) -> str:
    """Section 5."""
    own = [s for s in analysis.predictor.summaries if s.law == CHOSEN]
    if not own:
        return "No prediction: it needs runs of two models with their trunks."
    best, worst = (pick(own, key=lambda s: s.mean) for pick in (min, max))
    lead = sum(s.mean <= min(_rivals(analysis, s)) for s in own)
    total = sum(s.count for s in own)
    held = sum(s.held * s.count for s in own) / total
    return (
        f"The {CHOSEN} law has the least mean error in {lead} of {len(own)} splits: from "
        f"{best.mean:.4f} nats ({best.title}) to {worst.mean:.4f} ({worst.title}). Its 80 % "
        f"intervals hold {held:.0%} of {count(total)} outcomes, "
        f"{min(s.held for s in own):.0%} in the worst split."
    )


def best_of(best: Best | None) -> str:
    """A loss with its rate, of how many: 3.0378 (0.001, of 4)."""
    if best is None:
        return DASH
    tried = f", best of {best.rates}" if best.rates > 1 else ""
    return f"{best.loss:.4f} ({best.peak:g}{tried})"


def judged(difference: float, clear: float) -> str:
    """Whether a difference is more than noise, and of which sign."""
    if abs(difference) <= clear:
        return "within noise"
    return "clearly lower" if difference < 0 else "clearly higher"


def _versus(rows: Sequence[Horizon], clear: float) -> str:
    gaps = [row.difference for row in rows]
    below, above = sum(gap < -clear for gap in gaps), sum(gap > clear for gap in gaps)
    rest = len(gaps) - below - above
    return (
        f"WSD with 20 % cooldown ends clearly below cosine at {below} of {len(gaps)} horizons, "
        f"clearly above at {above}, within noise at {rest} ({_signed_range(gaps)})"
    )


def _signed_range(gaps: Sequence[float]) -> str:
    return f"{signed(min(gaps))} to {signed(max(gaps))} nats"


def _rivals(analysis: Analysis, own: Summary) -> list[float]:
    return [s.mean for s in analysis.predictor.summaries if s.title == own.title]
