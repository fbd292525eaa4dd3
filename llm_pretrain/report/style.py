"""How charts and the runs in them look: trunks dark, branches in colours all can tell apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_pretrain.report.data import RunData

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
NEUTRALS = ("#222222", "#6e6e6e", "#a3a3a3")
COLOURS = (  # Okabe and Ito's palette without black and yellow, and two dark ones of Paul Tol
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#332288",
)
SYMBOLS = ("square", "diamond", "circle", "triangle-up", "cross", "x", "star")


@dataclass(frozen=True)
class Look:
    """Line and marker of a run."""

    colour: str
    dash: str
    symbol: str
    width: float


def looks(runs: Sequence[RunData]) -> dict[RunData, Look]:
    """A look for each run; one trained from scratch is dashed, in the colour of its horizon."""
    branches = [run for run in runs if run.record.parent is not None]
    trunks = [run for run in runs if run.kind == "trunk"]
    found: dict[RunData, Look] = {}
    for i, run in enumerate(trunks):
        found[run] = Look(_cycle(NEUTRALS, i), "solid", "circle", 2.6)
    for i, run in enumerate(branches):
        found[run] = Look(_cycle(COLOURS, i), "solid", _cycle(SYMBOLS, i), 2.0)
    by_end = {run.total: found[run] for run in reversed(branches)}
    for run in runs:
        if run.kind == "scratch":
            twin = by_end.get(run.total)
            found[run] = Look(twin.colour if twin else "#6e6e6e", "dash", "circle-open", 1.6)
    return found


def base_layout(height: int, x: str, y: str) -> dict[str, Any]:
    """The layout of a chart `height` pixels high, with titles of its axes; the legend below."""
    axis = {"gridcolor": "#e3e3e3", "zeroline": False, "linecolor": "#888888", "ticks": "outside"}
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 75, "r": 25, "t": 50, "b": 60},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": _FONT, "size": 13, "color": "#222222"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": _FONT}},
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
    }


def _cycle(values: Sequence[str], i: int) -> str:
    return values[i % len(values)]
