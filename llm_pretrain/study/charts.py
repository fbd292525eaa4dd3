"""The chart of a study's losses as a plain plotly figure."""

from collections.abc import Sequence
from typing import Any

from llm_pretrain.report.style import COLOURS, SYMBOLS, base_layout
from llm_pretrain.study.config import StudyConfig, labels
from llm_pretrain.study.results import Found, Mean, Measured

Figure = dict[str, Any]
_DASHES = ("solid", "dash", "dot", "dashdot")


def losses(study: StudyConfig, found: Found) -> Figure:
    """Mean losses by tokens with standard errors: a colour for each name, a dash for each size."""
    traces = []
    for s, size in enumerate(study.sizes):
        for i, label in enumerate(labels(study)):
            own = [m for m in found.measured if (m.result.size, m.result.label) == (size, label)]
            if own:
                name = label if len(study.sizes) == 1 else f"{size}, {label}"
                traces.append(_trace(name, own, i, s))
    layout = base_layout(520, "Training tokens", "Validation loss (nats per token)")
    layout["xaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def _trace(name: str, own: Sequence[Measured], colour: int, dash: int) -> dict[str, Any]:
    by_tokens: dict[float, list[float]] = {}
    for one in own:
        by_tokens.setdefault(one.point.tokens, []).append(one.loss)
    tokens = sorted(by_tokens)
    means = [Mean.of(by_tokens[t]) for t in tokens]
    return {
        "type": "scatter",
        "name": name,
        "mode": "lines+markers",
        "x": tokens,
        "y": [mean.mean for mean in means],
        "error_y": {"type": "data", "array": [m.stderr or 0.0 for m in means], "thickness": 1},
        "line": {"color": COLOURS[colour % len(COLOURS)], "dash": _DASHES[dash % len(_DASHES)]},
        "marker": {"symbol": SYMBOLS[(colour // len(COLOURS) + dash) % len(SYMBOLS)], "size": 8},
        "hovertemplate": "%{y:.4f} at %{x:,} tokens<extra>" + name + "</extra>",
    }
