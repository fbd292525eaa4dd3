"""A matplotlib figure as SVG: the same bytes from the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from llm_pretrain import atomic


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, in inches, which is written to `path` afterwards. Raises OSError."""
    # Names of elements come from this salt instead of from chance, and no date is written.
    with mpl.rc_context({"svg.hashsalt": "llm-pretrain", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        atomic.write_text(path, text.getvalue())
