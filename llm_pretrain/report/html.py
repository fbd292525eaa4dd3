"""What pages are made of: the frame of a document that needs nothing from outside, its parts."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.io
import plotly.offline

# The policy makes a browser refuse whatever would need a network.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
)
# Buttons are listed one by one: plotly's own choice has one that uploads the chart.
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    "plotlyServerURL": "",
    "toImageButtonOptions": {"scale": 2},
}
_STYLE = """
:root { color-scheme: light dark; --text: #1d1d1f; --back: #fbfbfa; --line: #d9d9d6;
  --soft: #5c5c60; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ea; --back: #17181a; --line: #3a3b3e; --soft: #a3a3a8; --card: #1f2023; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; color: var(--text); background: var(--back); max-width: 1160px; margin: 0 auto;
  padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 75ch; margin: .5rem 0; }
.headline { font-size: 1.45rem; line-height: 1.35; font-weight: 600; max-width: 62ch; }
.note { color: var(--soft); font-size: .9rem; }
.chart { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
  margin: .8rem 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
td.text { min-width: 5rem; max-width: 18rem; overflow-wrap: break-word; }
td:first-child { font-weight: 600; min-width: 11.5rem; }
td.code { font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; min-width: 11rem;
  overflow-wrap: anywhere; }
tr.main td { border-bottom: 0; }
tr.detail td { padding-top: 0; color: var(--soft); font-weight: 400; overflow-wrap: anywhere; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page as HTML, with plotly inside. `title` is text, `parts` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{plotly.offline.get_plotlyjs()}</script>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """A heading and what is under it; `parts` are HTML, empty ones are left out."""
    inside = "\n".join(part for part in parts if part)
    return f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text. `kind`: its class in the style sheet, headline or note."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def chart(name: str, figure: dict[str, Any]) -> str:
    """A plotly figure with a height in its layout; `name` is the id of its element."""
    drawn: str = plotly.io.to_html(
        figure,
        config=_CONFIG,
        include_plotlyjs=False,
        include_mathjax=False,
        full_html=False,
        div_id=name,
        default_width="100%",
        default_height=f"{figure['layout']['height']}px",
    )
    return f'<div class="chart">{drawn}</div>'
