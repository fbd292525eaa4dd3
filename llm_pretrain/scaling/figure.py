"""The figure of `laws compare` as SVG."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llm_pretrain.report.style import COLOURS
from llm_pretrain.report.svg import drawn
from llm_pretrain.scaling.compare import AVERAGE, COOLDOWN, COSINE, Comparison
from llm_pretrain.scaling.words import amount

_MARKS = {COOLDOWN: "o", COSINE: "s", AVERAGE: "^"}


def draw(found: Comparison, path: Path) -> None:
    """Losses with the fitted laws, and on the right the held out size. Raises OSError."""
    with drawn(path, 9.0, 3.8) as figure:
        if not found.held:
            _laws(figure.subplots(), found)
            return
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _laws(left, found)
        _held(right, found)


def _laws(axes: mpl.axes.Axes, found: Comparison) -> None:
    for colour, (source, laws) in zip(COLOURS, found.laws.items(), strict=False):
        label: str | None = source
        for size in sorted({p.params for p in laws.points}):
            own = sorted((p for p in laws.points if p.params == size), key=lambda p: p.tokens)
            tokens = np.geomspace(own[0].tokens / 1.1, own[-1].tokens * 1.1, 30)
            axes.plot(
                [p.tokens for p in own],
                [p.loss for p in own],
                _MARKS[source],
                color=colour,
                markersize=4,
                label=label,
            )
            if laws.parametric:
                curve = [laws.parametric.loss(size, float(d)) for d in tokens]
                axes.plot(tokens, curve, "-", color=colour, linewidth=0.8)
            label = None
            if source == COOLDOWN:
                axes.text(
                    own[0].tokens * 0.94, own[0].loss - 0.04, own[0].size, fontsize=7, ha="right"
                )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens")
    axes.set_ylabel("final loss, nats per token")
    axes.set_title("Results, and the law of each kind")
    axes.legend(frameon=False)


def _held(axes: mpl.axes.Axes, found: Comparison) -> None:
    for i, one in enumerate(found.held):
        colour = COLOURS[list(found.laws).index(one.source)]
        low = one.predicted.value if one.predicted.low is None else one.predicted.low
        high = one.predicted.value if one.predicted.high is None else one.predicted.high
        axes.plot([i, i], [low - one.measured, high - one.measured], color=colour, linewidth=1)
        axes.plot(i, one.predicted.value - one.measured, _MARKS[one.source], color=colour)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_xticks(range(len(found.held)), [amount(one.tokens) for one in found.held], rotation=60)
    axes.set_ylabel("predicted less measured, nats")
    axes.set_title(f"{found.held[0].size} from the smaller sizes, 95%")
