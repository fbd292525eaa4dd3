"""Charts of laws as plain plotly figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_pretrain.report.style import COLOURS, SYMBOLS, base_layout
from llm_pretrain.scaling.frontier import Frontier
from llm_pretrain.scaling.laws import Laws
from llm_pretrain.scaling.points import Point

Figure = dict[str, Any]


def law_chart(laws: Laws, points: Sequence[Point]) -> Figure:
    """Losses over tokens, one series a size, and the fitted curves."""
    traces = []
    for i, size in enumerate(sorted({p.params for p in points})):
        own = sorted((p for p in points if p.params == size), key=lambda p: p.tokens)
        colour = COLOURS[i % len(COLOURS)]
        traces.append(_measured(own, [p.tokens for p in own], i))
        x = np.geomspace(own[0].tokens / 1.2, own[-1].tokens * 1.2, 40)
        y = _curve(laws, size, x)
        if y:
            traces.append(_line(f"{own[0].size}, law", [float(v) for v in x], y, colour))
    layout = base_layout(520, "Tokens", "Final loss (nats per token)")
    layout["xaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def envelope_chart(laws: Laws, points: Sequence[Point]) -> Figure:
    """Losses over FLOPs, one series a size, and the least loss by the law."""
    traces = []
    for i, size in enumerate(sorted({p.params for p in points})):
        own = sorted((p for p in points if p.params == size), key=lambda p: p.flops)
        trace = _measured(own, [p.flops for p in own], i)
        trace["mode"] = "lines+markers"
        traces.append(trace)
    if laws.parametric:
        budgets = _budgets(points)
        losses = [found.loss for c in budgets if (found := laws.optimum(c))]
        y = [loss.value for loss in losses if loss is not None]
        traces.append(_line("least loss by the law", budgets, y, "#222222"))
    layout = base_layout(520, "FLOPs from scratch", "Final loss (nats per token)")
    layout["xaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def optimum_chart(laws: Laws, points: Sequence[Point]) -> Figure:
    """The best size over budgets by every approach, with the places of approaches 1 and 2."""
    traces = []
    budgets = _budgets(points)
    if laws.parametric:
        best = [laws.optimum(c).params.value for c in budgets]
        traces.append(_line("law (approach 3)", budgets, best, "#222222"))
    parts = (("envelope (approach 1)", laws.envelope), ("IsoFLOP (approach 2)", laws.isoflop))
    for i, (name, part) in enumerate(parts):
        if part:
            best = [part.params(c) for c in budgets]
            traces.append(_line(name, budgets, best, COLOURS[i]))
            traces.append(_places(name, part, i))
    layout = base_layout(460, "Budget (FLOPs)", "Best size (parameters)")
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def _places(name: str, part: Frontier, i: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{name}, measured",
        "x": [place.flops.value for place in part.places],
        "y": [place.params.value for place in part.places],
        "text": [", ".join(place.sizes) for place in part.places],
        "marker": {"color": COLOURS[i], "symbol": SYMBOLS[i], "size": 9},
        "hovertemplate": "%{x:.3g} FLOPs, %{y:.3g}<br>%{text}<extra></extra>",
    }


def _curve(laws: Laws, size: float, tokens: Any) -> list[float]:
    """The fitted losses of a size; empty when it has no law."""
    if laws.parametric:
        return [laws.parametric.loss(size, float(d)) for d in tokens]
    for one in laws.tokens_only:
        if one.params == size:
            return [float(one.E.value + one.B.value * d**-one.beta.value) for d in tokens]
    return []


def _measured(own: Sequence[Point], x: Sequence[float], i: int) -> dict[str, Any]:
    colour = COLOURS[i % len(COLOURS)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": own[0].size,
        "x": list(x),
        "y": [p.loss for p in own],
        "text": [f"{p.run} ({p.source})" for p in own],
        "line": {"color": colour, "width": 1.2},
        "marker": {"color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
        "hovertemplate": "<b>%{fullData.name}</b><br>%{x:.4g}, %{y:.4f}<br>%{text}<extra></extra>",
    }


def _line(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> dict[str, Any]:
    line = {"color": colour, "dash": "dash", "width": 1.6}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": line,
    }


def _budgets(points: Sequence[Point]) -> list[float]:
    flops = [p.flops for p in points]
    return [float(c) for c in np.geomspace(min(flops), 3 * max(flops), 40)]
