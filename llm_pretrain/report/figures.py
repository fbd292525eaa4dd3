"""The charts as plain plotly figures: validation loss, training loss, learning rate."""

import html
import math
from collections.abc import Sequence
from typing import Any

from llm_pretrain.report import curves, words
from llm_pretrain.report.curves import Curve
from llm_pretrain.report.data import RunData
from llm_pretrain.report.style import Look, base_layout, looks

Figure = dict[str, Any]

_AXES = {"tokens": "Training tokens", "steps": "Steps (optimizer updates)"}


def validation_loss(runs: Sequence[RunData]) -> Figure | None:
    """Evaluations of every run, each branch joined to its parent, and of its best averages; None
    when there is none."""
    drawn = [draw(run) for draw in (curves.validation, curves.averaged) for run in runs]
    return _figure(runs, drawn, "Validation loss (nats per token)", markers=0, zoomed=True)


def training_loss(runs: Sequence[RunData]) -> Figure | None:
    """Training loss of every run; None when there is none."""
    drawn = [curves.training(run) for run in runs]
    return _figure(runs, drawn, "Training loss (nats per token)", markers=6, zoomed=True)


def learning_rate(runs: Sequence[RunData]) -> Figure | None:
    """The learning rate of every update, as the configs say, trained or not."""
    drawn = [curves.rates(run) for run in runs]
    return _figure(runs, drawn, "Learning rate", markers=6, zoomed=False)


def focus(drawn: Sequence[Curve]) -> tuple[float, float] | None:
    """A range of losses that leaves out the fall at the start; None when it would cut nothing.

    What happens after 15% of the tokens is visible, with a margin.
    """
    points = [(t, v) for curve in drawn for t, v in zip(curve.tokens, curve.values, strict=True)]
    if not points:
        return None
    begin = 0.15 * max(t for t, _ in points)
    highest = max(v for t, v in points if t >= begin)
    lowest = min(v for _, v in points)
    margin = 0.06 * (highest - lowest) or 0.1
    if max(v for _, v in points) <= highest + margin:
        return None
    return lowest - margin, highest + margin


def _figure(
    runs: Sequence[RunData], drawn: Sequence[Curve], title: str, *, markers: int, zoomed: bool
) -> Figure | None:
    """A chart over tokens with a switch to steps. `markers`: most per line, 0 for all points."""
    kept = [curve for curve in drawn if curve.values]
    if not kept:
        return None
    look = looks(runs)
    digits = ".4f" if zoomed else ".3g"
    traces = [_trace(curve, look[curve.run], markers, digits) for curve in kept]
    layout = _layout(kept, title)
    window = focus(kept) if zoomed else None
    if window:
        layout["yaxis"]["range"] = list(window)
    if not zoomed:
        layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def _trace(curve: Curve, look: Look, markers: int, digits: str) -> dict[str, Any]:
    said = [
        [words.count(step), words.tokens(tokens), remark]
        for step, tokens, remark in zip(curve.steps, curve.tokens, curve.remarks, strict=True)
    ]
    thin = markers > 0
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(curve.run) + (f", {curve.of}" if curve.of else ""),
        "x": curve.tokens,
        "y": curve.values,
        "customdata": said,
        "line": {
            "color": look.colour,
            "dash": "dot" if curve.of else look.dash,
            "width": 0.7 * look.width if thin else look.width,
        },
        "marker": {
            "color": look.colour,
            "symbol": look.symbol,
            "size": 6,
            "maxdisplayed": markers,
        },
        "hovertemplate": (
            "<b>%{fullData.name}</b><br>step %{customdata[0]}, %{customdata[1]} tokens"
            f"<br>%{{y:{digits}}}%{{customdata[2]}}<extra></extra>"
        ),
    }


def label(run: RunData) -> str:
    """The name in a legend, where plotly reads a little HTML."""
    suffix = " (from scratch)" if run.kind == "scratch" else ""
    return html.escape(f"{run.label}{suffix}", quote=False)


def _layout(drawn: Sequence[Curve], title: str) -> dict[str, Any]:
    columns = max(1, 1050 // (7 * max(len(curve.run.label) for curve in drawn) + 60))
    legend_rows = math.ceil(len(drawn) / columns)
    layout = base_layout(480 + 22 * legend_rows, _AXES["tokens"], title)
    layout["xaxis"]["exponentformat"] = "B"
    layout["updatemenus"] = [_switch(drawn)]
    return layout


def _switch(drawn: Sequence[Curve]) -> dict[str, Any]:
    """Two buttons: the same curves over tokens, or over steps."""
    buttons = []
    for unit, title in _AXES.items():
        places = [curve.tokens if unit == "tokens" else curve.steps for curve in drawn]
        change = {"xaxis.title.text": title, "xaxis.autorange": True}
        buttons.append(
            {"label": f"over {unit}", "method": "update", "args": [{"x": places}, change]}
        )
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.03,
        "yanchor": "bottom",
        "showactive": True,
        "buttons": buttons,
        "font": {"size": 12},
    }
