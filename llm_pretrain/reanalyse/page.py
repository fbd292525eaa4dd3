"""The page of the reanalysis: what was found, the chart, the numbers, section by section."""

import html

from llm_pretrain import __version__
from llm_pretrain.reanalyse import charts, words
from llm_pretrain.reanalyse.analysis import Analysis
from llm_pretrain.reanalyse.comparisons import WHOLE
from llm_pretrain.reanalyse.predictor import CHOSEN
from llm_pretrain.report.html import chart, document, paragraph, section
from llm_pretrain.report.tables import Column, table
from llm_pretrain.report.words import DASH, count, plural, signed


def render(analysis: Analysis, name: str, made: str) -> str:
    """The whole page as HTML; `name` is the file that was read, `made` the time."""
    parts = [
        _opening(analysis, name),
        _cosine(analysis),
        _shapes(analysis),
        _rates(analysis),
        _halves(analysis),
        _predictor(analysis),
        paragraph(f"Made {made} by llm-pretrain {__version__}.", "note"),
    ]
    return document(f"Reanalysis: {name}", parts)


def _opening(analysis: Analysis, name: str) -> str:
    failed = plural(len(analysis.diverged), "run")
    left_out = f" {failed} that diverged: left out." if analysis.diverged else ""
    return "\n".join(
        [
            f"<h1>Reanalysis of {html.escape(name)}</h1>",
            paragraph(
                "Learning rate schedules: theory and predictions against real runs", "headline"
            ),
            paragraph(f"{words.SOURCE} {plural(analysis.runs, 'run')}.{left_out}"),
            paragraph(words.noise(analysis.repeats)),
        ]
    )


def _cosine(analysis: Analysis) -> str:
    rows, clear = analysis.cosine_and_wsd, analysis.repeats.clear
    columns = [
        Column("model"),
        Column("steps", "number"),
        Column("cosine to 10 % (rate)", "number"),
        Column("WSD 20 %, linear (rate)", "number"),
        Column("WSD less cosine", "number"),
        Column("WSD is"),
        Column("cosine to 0 (rate)", "number"),
        Column("WSD 20 %, 1-sqrt (rate)", "number"),
    ]
    cells = [
        [
            row.model if row.sample == WHOLE else f"{row.model}, {row.sample}",
            count(row.total),
            words.best_of(row.cosine),
            words.best_of(row.wsd),
            signed(row.difference),
            words.judged(row.difference, clear),
            words.best_of(row.cosine_to_zero),
            words.best_of(row.wsd_sqrt),
        ]
        for row in rows
    ]
    zero = words.cosine_to_zero(analysis)
    said = (
        "Shaded: differences that repeated runs show too. Losses after the last update, "
        "on the whole validation set or, where that is missing, on the 32 batches of its curve."
    )
    return section(
        "cosine",
        "Cosine against WSD with 20 % cooldown",
        paragraph(words.cosine_and_wsd(analysis)),
        chart("cosine-chart", charts.cosine_and_wsd(rows, analysis.repeats)) if rows else "",
        table(columns, cells) if rows else "",
        paragraph(zero) if zero else "",
        paragraph(said, "note"),
    )


def _shapes(analysis: Analysis) -> str:
    rows, clear = analysis.sqrt_and_linear, analysis.repeats.clear
    titles = ("steps", "peak rate", "cooldown, steps", "linear", "1-sqrt", "1-sqrt less linear")
    columns = [Column("model"), *(Column(t, "number") for t in titles), Column("1-sqrt is")]
    cells = [
        [
            row.model,
            count(row.total),
            f"{row.peak:g}",
            count(row.cooldown),
            f"{row.linear:.4f}",
            f"{row.sqrt:.4f}",
            signed(row.difference),
            words.judged(row.difference, clear),
        ]
        for row in rows
    ]
    return section(
        "shapes",
        "1-sqrt against linear cooldowns",
        paragraph(words.sqrt_and_linear(analysis)),
        chart("shapes-chart", charts.sqrt_and_linear(rows, analysis.repeats)) if rows else "",
        table(columns, cells) if rows else "",
    )


def _rates(analysis: Analysis) -> str:
    entries = analysis.best_rates.entries
    titles = ("steps", "cooldown", "best rate", "80 %", "ln ratio to the longest", "80 %")
    more = ("theory", "ln ratio, all rates", "misfit of all rates")
    columns = [Column("model"), *(Column(t, "number") for t in (*titles, *more))]
    cells = [
        [
            entry.model,
            count(entry.total),
            f"{entry.share:.1%}",
            f"{entry.rate:.3g}",
            _range(entry.rate_range, ".3g"),
            f"{entry.log_ratio:.3f}",
            _range(entry.log_ratio_range, ".2f") if entry.theory else DASH,
            f"{entry.theory:.3f}",
            DASH if entry.log_ratio_all is None else f"{entry.log_ratio_all:.3f}",
            DASH if entry.scatter_all is None else f"{entry.scatter_all:.4f}",
        ]
        for entry in entries
    ]
    said = (
        "Best rate: loss = A / rate + B rate + C through the losses at peak rates within a factor "
        "of 4 of the best one, at sqrt(A / B). Over all rates the form misses by more than the "
        "noise (last column), and the ratios depend on which rates there are. Theory: the rates "
        "with the least bound for the runs' own schedules; the constants of the problem cancel. "
        "Intervals: losses drawn again with the deviation of repeated runs; open where that leaves "
        "no least loss in more than 5 % of the draws."
    )
    return section(
        "rates",
        "The best learning rate against the length of the cooldown",
        paragraph(words.best_rates(analysis)),
        chart("rates-chart", charts.best_rates(entries)) if entries else "",
        table(columns, cells) if entries else "",
        paragraph(said, "note"),
    )


def _halves(analysis: Analysis) -> str:
    found = analysis.halves
    titles = ("steps", "scatter, first half", "mean error, second", "worst", "error at the end")
    more = ("its 80 % interval", "fall in the second half")
    columns = [Column("curve"), *(Column(t, "number") for t in (*titles, *more))]
    cells = [
        [
            one.title,
            count(one.total),
            f"{one.scatter:.4f}",
            f"{one.mean_error:.4f}",
            f"{one.worst:.4f}",
            signed(one.end_error),
            f"± {one.half_width:.4f}",
            f"{one.unchanged:.4f}",
        ]
        for one in found
    ]
    said = (
        "The bound plus an offset, with gradient norms G1 exp(A1 t) + G2 t^A2 + B, fitted to the "
        "validation losses from five lengths of the warmup to half of the steps; the rest is "
        "predicted from the learning rates alone (dashed). Before a cooldown begins, its curve is "
        "that of its trunk. A first half at a nearly constant rate tells little of how much a "
        "falling one takes away."
    )
    return section(
        "halves",
        "The bound's curve, fitted to the first half",
        paragraph(words.halves(analysis)),
        chart("halves-chart", charts.halves(found)) if found else "",
        table(columns, cells) if found else "",
        paragraph(said, "note"),
    )


def _predictor(analysis: Analysis) -> str:
    found = analysis.predictor
    titles = ("losses", "mean error", "worst", "bias", "80 % intervals hold", "± on average")
    columns = [Column("split"), Column("law"), *(Column(t, "number") for t in titles)]
    cells = [
        [
            one.title,
            f"{one.law} (chosen)" if one.law == CHOSEN else one.law,
            count(one.count),
            f"{one.mean:.4f}",
            f"{one.worst:.4f}",
            signed(one.bias),
            f"{one.held:.0%}",
            f"{one.half_width:.4f}",
        ]
        for one in found.summaries
    ]
    said = (
        "Each split fits a law to some runs of a model and predicts final losses of others, which "
        "the fit never saw; its prior is from models of other sizes. H: longer horizons; R: other "
        "peak rates; L: the longest cooldowns of every trunk; C: cosines at twice its rate. Points "
        "name their model and rate, the error, and its interval."
    )
    return section(
        "predictor",
        "The loss predictor",
        paragraph(words.predictor(analysis)),
        chart("predictor-chart", charts.predictor(found.outcomes)) if found.outcomes else "",
        table(columns, cells) if cells else "",
        paragraph(said, "note"),
    )


def _range(span: tuple[float, float] | None, form: str) -> str:
    return "open" if span is None else f"{span[0]:{form}} to {span[1]:{form}}"
