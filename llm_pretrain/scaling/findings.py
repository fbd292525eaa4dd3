"""What `laws compare` found, in words and rows; the page of it."""

import html
import statistics
from collections.abc import Sequence

from llm_pretrain import __version__
from llm_pretrain.report import html as parts
from llm_pretrain.report.tables import Column, table
from llm_pretrain.report.words import plural, signed
from llm_pretrain.scaling import words
from llm_pretrain.scaling.compare import SHARE, Comparison, Held, smaller
from llm_pretrain.scaling.laws import Laws
from llm_pretrain.scaling.page import section
from llm_pretrain.scaling.parametric import lacking


def agreement(found: Comparison) -> str:
    """Whether the laws of cooldowns and of cosines are the same."""
    gap = statistics.fmean(found.gaps)
    away = [one.name for one in found.differences if not one.agrees]
    said = (
        f"At {plural(len(found.gaps), 'pair')} of size and length, cosine ends {signed(gap)} nats "
        f"from the cooldown on average ({signed(min(found.gaps))} to {signed(max(found.gaps))}). "
    )
    if away:
        said += f"The two laws differ, by more than the intervals allow, in {', '.join(away)}. "
    else:
        said += "Nothing in the two laws differs by more than its interval allows. "
    if found.shared is None:
        return f"{said}A law leaves no residuals, so these cannot be compared."
    return (
        f"{said}The residuals of the two correlate by {found.shared:.2f}: the nearer to 1, the "
        "more of them is the form's error on the same models and not noise of the runs, the wider "
        "than needed are the intervals, and the less does their agreement say."
    )


def held(found: Comparison) -> list[str]:
    """How well the smaller sizes predict the largest, a sentence a source."""
    sentences = []
    for source, laws in found.laws.items():
        own = [one for one in found.held if one.source == source]
        if not own:
            missing = lacking(smaller(laws.points))
            sentences.append(f"{source}: no law of the smaller sizes: it {missing}.")
            continue
        errors = [one.predicted.value - one.measured for one in own]
        mean = statistics.fmean(abs(error) for error in errors)
        sentences.append(
            f"{source}: the law of the smaller sizes misses {own[0].size} by {mean:.4f} nats on "
            f"average over {plural(len(own), 'length')} ({signed(min(errors))} to "
            f"{signed(max(errors))}); {sum(one.inside for one in own)} inside the 95% interval."
        )
    return sentences


def left_out(found: Comparison) -> list[str]:
    """Errors on every size and horizon, left out in turn."""
    return [f"{name}: {text}" for name, law in _columns(found) for text in words.left_out(law)]


def reuse(found: Comparison) -> str:
    """What the same results cost in both ways."""
    if not found.reuse:
        return (
            "What reuse saves is not said: the table does not say how long the cooldowns were, nor "
            "which came from one trunk."
        )
    reused, scratch = (sum(getattr(r, n) for r in found.reuse) for n in ("reused", "scratch"))
    results = sum(one.results for one in found.reuse)
    ratios = [one.ratio for one in found.reuse]
    return (
        f"FLOPs for the same {results} results: {scratch:.4g} from scratch, {reused:.4g} with "
        f"cooldowns of the last {SHARE:.0%} from one trunk a size: {reused / scratch:.3f} of it "
        f"({min(ratios):.3f} to {max(ratios):.3f} by size)."
    )


def parameter_rows(found: Comparison) -> list[list[str]]:
    """Parameters side by side, a column a law."""
    laws = _columns(found)
    rows = [words.parameters(law) for _, law in laws]
    joined = [[own[0][0], *(value for _, value in own)] for own in zip(*rows, strict=True)]
    exponents = [law.parametric.exponent for _, law in laws if law.parametric]
    residuals = [law.parametric.deviation for _, law in laws if law.parametric]
    joined.append(["a of N ~ C^a", *(words.interval(value, ".3f") for value in exponents)])
    joined.append(["residuals, % of the loss", *(f"{100 * value:.2f}" for value in residuals)])
    return joined


def titles(found: Comparison) -> list[str]:
    """Of the columns of `parameter_rows`, after the first."""
    return [f"{name} ({plural(len(law.points), 'result')})" for name, law in _columns(found)]


def difference_rows(found: Comparison) -> list[list[str]]:
    """Cosine's parameters less the cooldowns'."""
    return [
        [one.name, words.interval(one.value, "+.3f"), "yes" if one.agrees else "no"]
        for one in found.differences
    ]


def held_row(one: Held) -> list[str]:
    """A result of the largest size."""
    said = words.interval(one.predicted, ".4f")
    error = signed(one.predicted.value - one.measured)
    return [one.source, f"{one.tokens / 1e9:.2f}B", f"{one.measured:.4f}", said, error]


def paragraphs(found: Comparison) -> list[str]:
    """All findings, and what the fits themselves had to say."""
    notes = [f"{name}: {note}." for name, law in _columns(found) for note in law.notes]
    return [agreement(found), *held(found), *left_out(found), reuse(found), *notes]


def render(found: Comparison, name: str, said: Sequence[str], made: str) -> str:
    """The page; `name` is the file that was read, `said` the source where it is known and what N
    and C count, `made` the time."""
    first = [Column("parameter"), *(Column(title, "number") for title in titles(found))]
    second = [Column("cosine less cooldown"), Column("95%", "number"), Column("zero inside")]
    heads = ("tokens", "measured", "predicted (95%)", "predicted less measured")
    third = [Column("source"), *(Column(title, "number") for title in heads)]
    body = [
        f"<h1>Scaling laws of {html.escape(name)}, compared</h1>",
        *map(parts.paragraph, said),
        parts.section(
            "agree",
            "Cooldowns and cosines",
            parts.paragraph(agreement(found)),
            table(first, parameter_rows(found)),
            table(second, difference_rows(found)),
        ),
        parts.section(
            "held",
            "The largest size from the smaller ones",
            *map(parts.paragraph, held(found)),
            table(third, [held_row(one) for one in found.held]),
        ),
        parts.section("reuse", "What reuse saves", parts.paragraph(reuse(found))),
        *(
            section(law, law.points, name=f"law-{i}", title=f"Law of {title}")
            for i, (title, law) in enumerate(_columns(found))
        ),
        *(parts.paragraph(text, "note") for text in words.grouped(found.excluded)),
        parts.paragraph(f"Made {made} by llm-pretrain {__version__}.", "note"),
    ]
    return parts.document(f"Scaling laws: {name}", body)


def _columns(found: Comparison) -> list[tuple[str, Laws]]:
    laws = list(found.laws.items())
    if found.all_cosine:
        laws.insert(2, ("cosine, all", found.all_cosine))
    return laws
