"""The charts of the reanalysis as plain plotly figures."""

from collections.abc import Sequence
from typing import Any

from llm_pretrain.reanalyse.comparisons import WHOLE, Horizon, Repeats, Shapes
from llm_pretrain.reanalyse.halves import Extrapolation
from llm_pretrain.reanalyse.predictor import Outcome
from llm_pretrain.reanalyse.rates import BestRate
from llm_pretrain.report.style import COLOURS, SYMBOLS, base_layout

Figure = dict[str, Any]
_STEPS = "Steps (optimizer updates)"
_SHADE = "rgba(120,120,120,0.18)"


def cosine_and_wsd(rows: Sequence[Horizon], noise: Repeats) -> Figure:
    """Differences of final losses by horizon, one series a model and choice of rates."""
    groups: dict[str, list[Horizon]] = {}
    for row in rows:
        several = ", best rate of each" if min(row.cosine.rates, row.wsd.rates) > 1 else ""
        sample = "" if row.sample == WHOLE else f", {row.sample}"
        groups.setdefault(f"{row.model}{several}{sample}", []).append(row)
    traces = [
        _series(name, [r.total for r in own], [r.difference for r in own], i)
        for i, (name, own) in enumerate(groups.items())
    ]
    return _differences(traces, noise, "WSD 20 % less cosine to 10 %, nats")


def sqrt_and_linear(rows: Sequence[Shapes], noise: Repeats) -> Figure:
    """Differences by peak rate, one series a model and length."""
    groups: dict[str, list[Shapes]] = {}
    for row in rows:
        name = f"{row.model}, {row.total:,} steps, last {row.cooldown / row.total:.0%}"
        groups.setdefault(name, []).append(row)
    traces = [
        _series(name, [r.peak for r in own], [r.difference for r in own], i)
        for i, (name, own) in enumerate(groups.items())
    ]
    figure = _differences(traces, noise, "1-sqrt less linear, nats")
    peaks = sorted({row.peak for row in rows})
    figure["layout"]["xaxis"] |= {
        "type": "log",
        "title": {"text": "Peak learning rate"},
        "tickvals": peaks,
        "ticktext": [f"{peak:g}" for peak in peaks],
    }
    return figure


def best_rates(entries: Sequence[BestRate]) -> Figure:
    """Measured against predicted ratios, and the diagonal."""
    groups: dict[str, list[BestRate]] = {}
    for entry in entries:
        groups.setdefault(f"{entry.model}, {entry.total:,} steps", []).append(entry)
    traces = [_diagonal([e.theory for e in entries], "theory")]
    for i, (name, own) in enumerate(groups.items()):
        trace = _series(name, [e.theory for e in own], [e.log_ratio for e in own], i)
        spans = [e.log_ratio_range or (e.log_ratio, e.log_ratio) for e in own]
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - e.log_ratio for e, (_, high) in zip(own, spans, strict=True)],
            "arrayminus": [e.log_ratio - low for e, (low, _) in zip(own, spans, strict=True)],
            "thickness": 1,
        }
        trace["text"] = [f"cooldown {e.share:.0%}, best rate {e.rate:.3g}" for e in own]
        trace["mode"] = "markers"
        traces.append(trace)
    layout = base_layout(
        500,
        "ln (best rate of the longest cooldown / of this one): theory",
        "the same, from the runs",
    )
    return {"data": traces, "layout": layout}


def halves(found: Sequence[Extrapolation]) -> Figure:
    """Curves as measured (points), fitted (solid) and predicted (dashed)."""
    traces: list[dict[str, Any]] = []
    for i, one in enumerate(found):
        colour = COLOURS[i % len(COLOURS)]
        measured = _series(one.title, one.steps, one.losses, i)
        measured["mode"] = "markers"
        measured["marker"]["size"] = 4
        measured["legendgroup"] = one.title
        traces.append(measured)
        cut = one.fitted
        for part, dash in ((slice(0, cut), "solid"), (slice(cut - 1, None), "dash")):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"{one.title}, {'fitted' if dash == 'solid' else 'predicted'}",
                    "x": list(one.steps[part]),
                    "y": list(one.curve[part]),
                    "line": {"color": colour, "dash": dash, "width": 1.8},
                    "legendgroup": one.title,
                    "showlegend": False,
                }
            )
    layout = base_layout(560, _STEPS, "Validation loss, 32 batches (nats)")
    late = [loss for one in found for loss in one.losses[one.fitted // 3 :]]
    drawn = [loss for one in found for loss in one.curve[one.fitted // 3 :]]
    low, high = min(late + drawn), max(late)
    layout["yaxis"]["range"] = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    return {"data": traces, "layout": layout}


def predictor(outcomes: Sequence[Outcome]) -> Figure:
    """Error of each prediction against what was measured, one series a split."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.title, []).append(outcome)
    traces = [_diagonal([o.measured for o in outcomes], "predicted = measured")]
    for i, (name, own) in enumerate(groups.items()):
        trace = _series(name, [o.measured for o in own], [o.predicted for o in own], i)
        trace["mode"] = "markers"
        trace["marker"]["size"] = 5
        trace["text"] = [
            f"{o.model}, {o.detail}: {o.predicted - o.measured:+.4f} ± {o.half_width:.4f}"
            for o in own
        ]
        traces.append(trace)
    layout = base_layout(560, "Measured final loss (nats)", "Predicted final loss (nats)")
    return {"data": traces, "layout": layout}


def _differences(traces: list[dict[str, Any]], noise: Repeats, title: str) -> Figure:
    """Around zero, with what counts as noise shaded."""
    layout = base_layout(500, _STEPS, title)
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "#888888"}
    layout["shapes"] = [
        {
            "type": "rect",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": -noise.clear,
            "y1": noise.clear,
            "fillcolor": _SHADE,
            "line": {"width": 0},
            "layer": "below",
        }
    ]
    return {"data": traces, "layout": layout}


def _series(name: str, x: Sequence[float], y: Sequence[float], i: int) -> dict[str, Any]:
    colour = COLOURS[i % len(COLOURS)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 1.5},
        "marker": {"color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
        "hovertemplate": "<b>%{fullData.name}</b><br>%{x}, %{y:.4f}<br>%{text}<extra></extra>",
    }


def _diagonal(values: Sequence[float], name: str) -> dict[str, Any]:
    ends = [min(values), max(values)]
    line = {"color": "#888888", "dash": "dot", "width": 1.5}
    return {"type": "scatter", "mode": "lines", "name": name, "x": ends, "y": ends, "line": line}
