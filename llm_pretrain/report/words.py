"""Numbers and findings in words, the same on the page and in the terminal."""

import statistics
from collections.abc import Sequence

from llm_pretrain.report.analysis import CLEAR, Comparison, Cost, Gain, trunk_of
from llm_pretrain.report.data import Evaluation, RunData

DASH = "\N{EN DASH}"
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def count(value: int) -> str:
    """12,345."""
    return f"{value:,}"


def tokens(value: int) -> str:
    """614,400 in full; from a million on four digits: 1.229M."""
    for size, suffix in _UNITS:
        if value >= size:
            return f"{value / size:.4g}{suffix}"
    return count(value)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 45 s, 12.3 min, 3.4 h, 5.6 days."""
    if seconds is None:
        return "not measured"
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def loss(evaluation: Evaluation | None) -> str:
    """3.1234 ± 0.0210, or a dash."""
    if evaluation is None:
        return DASH
    return f"{evaluation.loss:.4f} ± {evaluation.stderr:.4f}"


def last_average(run: RunData) -> str:
    """3.1234 (window of 500 steps), at the last evaluation; empty where it has none."""
    last = last_loss(run)
    return f"{last.average[1]:.4f} ({last.average[0]})" if last and last.average else ""


def signed(value: float) -> str:
    """With its sign: +0.1234; below zero with a true minus."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def gain(comparison: Comparison | None) -> str:
    """+0.1234 ± 0.0210, or a dash."""
    if comparison is None:
        return DASH
    return f"{signed(comparison.gain)} ± {comparison.stderr:.4f}"


def predicted(cooldown: Gain) -> str:
    """3.1234 (3.1200 to 3.1260), with how far off it was once the run has ended; or a dash."""
    found = cooldown.run.record.prediction
    if found is None:
        return DASH
    text = f"{found['loss']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
    if cooldown.end is None:
        return text
    inside = found["low"] <= cooldown.end.loss <= found["high"]
    off = signed(found["loss"] - cooldown.end.loss)
    return f"{text}; {off}, {'inside' if inside else 'outside of'} its interval of 80%"


def verdict(comparison: Comparison) -> str:
    """Which of the two is lower, in standard errors, when that is clear."""
    distance = f"{abs(comparison.sigmas):.1f} se"
    if comparison.clear:
        return f"lower by {distance}"
    if comparison.sigmas < -CLEAR:
        return f"higher by {distance}"
    return f"not clearly different ({distance})"


def plural(number: int, noun: str) -> str:
    """1 cooldown, 2 cooldowns."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def origin(run: RunData) -> str:
    """Where a run starts: the parent and the step, or the steps of which it is the average."""
    if run.record.parent is None:
        return "from scratch" if run.kind == "scratch" else "trunk"
    name = run.parent.label if run.parent else f"{run.record.parent.run} (not found)"
    if run.kind == "average":
        return f"average of {name} at steps {', '.join(map(count, run.config.mean_of))}"
    return f"{name} at step {count(run.begin)}"


def state(run: RunData) -> str:
    """The state, with the first line of its reason."""
    reason = (run.record.reason or "").strip().splitlines()
    return f"{run.status}: {reason[0]}" if reason else run.status


def last_loss(run: RunData) -> Evaluation | None:
    """The run's newest evaluation."""
    return run.evaluations[-1] if run.evaluations else None


def median_rate(run: RunData) -> float | None:
    """Median tokens per second over the rows of metrics."""
    return statistics.median(row.rate for row in run.training) if run.training else None


def headline(runs: Sequence[RunData], gains: Sequence[Gain], costs: Sequence[Cost]) -> list[str]:
    """What was found, a sentence for each trunk; what there is, where nothing was found yet."""
    trunks = list(dict.fromkeys(t for g in gains if (t := trunk_of(g.run)) is not None))
    sentences: list[str] = []
    said: set[RunData] = set()
    for trunk in trunks:
        own = [g for g in gains if trunk_of(g.run) is trunk]
        mine = [c for c in costs if all(trunk_of(run) is trunk for run in c.finished)]
        price = f"; compute {_share(mine[0])}" if mine else ""
        said.update(cost.trunk for cost in mine)
        sentences.append(f"{_finding(trunk, own)}{price}.")
    for cost in costs:
        if cost.trunk not in said:
            what = plural(len(cost.finished), "finished cooldown")
            sentences.append(f"{what} in the family of {cost.trunk.label}: compute {_share(cost)}.")
    homeless = [g.run.label for g in gains if trunk_of(g.run) is None]
    if homeless:
        sentences.append(f"No trunk to compare with: {', '.join(homeless)}.")
    return sentences if gains else [_beginning(runs)]


def _beginning(runs: Sequence[RunData]) -> str:
    started = sum(bool(run.evaluations) for run in runs)
    return f"{plural(len(runs), 'run')}, no cooldown yet; {started} with a validation loss."


def _share(cost: Cost) -> str:
    """What the family needed of the compute from scratch."""
    return f"{cost.ratio:.0%} of training each horizon from scratch"


def _finding(trunk: RunData, gains: Sequence[Gain]) -> str:
    """How the cooldowns from one trunk ended."""
    what = f"{plural(len(gains), 'cooldown')} from trunk {trunk.label}"
    equal = [g.trunk for g in gains if g.trunk is not None and g.trunk.equal_tokens]
    if not equal:
        finished = sum(g.end is not None for g in gains)
        why = "none can be compared at equal tokens" if finished else "none has finished"
        return f"{what}: {why}"
    below = [c for c in equal if c.gain > 0]
    rest = len(gains) - len(equal)
    left_out = f" ({rest} not comparable at equal tokens yet)" if rest else ""
    if not below:
        return f"{what}: none ends below the trunk at equal tokens{left_out}"
    subject = f"{len(below)} of {len(equal)} end" if len(below) < len(equal) else "each ends"
    subject = "it ends" if len(equal) == len(gains) == len(below) == 1 else subject
    return (
        f"{what}: {subject} below the trunk at equal tokens{left_out}, "
        f"by {_range([c.gain for c in below])} nats per token{_clarity(below)}"
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _clarity(comparisons: Sequence[Comparison]) -> str:
    clear = sum(c.clear for c in comparisons)
    limit = f"more than {CLEAR:g} standard errors"
    if clear == len(comparisons):
        return f", {limit}{' each' if clear > 1 else ''}"
    return f"; {clear} of {len(comparisons)} by {limit}"
