"""The figure of a study's losses as SVG."""

from pathlib import Path

import matplotlib as mpl

from llm_pretrain.report.style import COLOURS
from llm_pretrain.report.svg import drawn
from llm_pretrain.report.words import count
from llm_pretrain.study.config import StudyConfig, labels
from llm_pretrain.study.results import Found, Mean

_LINES = ("-", "--", ":")
_MARKS = ("o", "s", "^")
_APART = 0.003
"""Between the error bars of two methods, as a share of the steps: they would hide each other."""


def draw(study: StudyConfig, found: Found, path: Path) -> None:
    """Losses by horizon with standard errors over seeds, beside each other for each size. Raises
    OSError."""
    sizes = found.horizons.items()
    with drawn(path, 2.6 + max(4.4, 3.2 * len(sizes)), 4.2) as figure:
        for axes, (size, horizons) in zip(
            figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True
        ):
            _losses(axes, study, found, size, horizons)
            axes.set_xticks(horizons, [count(horizon) for horizon in horizons])
            axes.set_title(size)
            axes.set_xlabel("steps")
        figure.axes[0].set_ylabel("validation loss, nats per token")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False
        )


def _losses(
    axes: mpl.axes.Axes, study: StudyConfig, found: Found, size: str, horizons: list[int]
) -> None:
    names = labels(study)
    for i, label in enumerate(names):
        cells = {h: found.cells.get((size, label, h), {}) for h in horizons}
        own = {h: Mean.of(list(losses.values())) for h, losses in cells.items() if losses}
        style = i // len(COLOURS)
        axes.errorbar(
            [step * (1 + _APART * (i - len(names) / 2)) for step in own],
            [mean.mean for mean in own.values()],
            [mean.stderr or 0.0 for mean in own.values()],
            color=COLOURS[i % len(COLOURS)],
            linestyle=_LINES[style % len(_LINES)],
            marker=_MARKS[style % len(_MARKS)],
            markersize=4,
            linewidth=1,
            label=label,
        )
