"""The page in headless Chromium, without a network: charts drawn, hovering and switching work."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_family import branch, config, create, demo, ends, renamed, steady_loss

from llm_pretrain.report.command import report

pytestmark = pytest.mark.browser

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--window-size=1200,2400",
    "--dump-dom",
]
_WATCH = """<script>
window.problems = [];
window.onerror = (message) => { window.problems.push(String(message)); };
document.addEventListener("securitypolicyviolation", (e) => {
  window.problems.push("refused: " + e.violatedDirective + " " + e.blockedURI);
});
const complain = console.error;
console.error = (...all) => { window.problems.push(all.join(" ")); complain(...all); };
</script>"""
_PROBE = """<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const chart = (id) => document.getElementById(id);
const texts = (root, what) => [...root.querySelectorAll(what)].map((node) => node.textContent);
const described = (id) => ({
  traces: chart(id).querySelectorAll(".scatterlayer .trace").length,
  lines: [...chart(id).querySelectorAll(".scatterlayer .js-line")]
    .filter((line) => line.getAttribute("d").length > 4).length,
  names: texts(chart(id), ".legendtext"),
  axes: texts(chart(id), ".xtitle, .ytitle"),
});
window.addEventListener("load", async () => {
  const seen = {};
  try {
    for (const plot of document.querySelectorAll(".plotly-graph-div")) {
      seen[plot.id] = described(plot.id);
    }
    const first = document.querySelector(".plotly-graph-div");
    if (first) {
      Plotly.Fx.hover(first.id, [{curveNumber: 1, pointNumber: 3}]);
      await pause(300);
      seen.hover = texts(first, ".hoverlayer .hovertext").join("|");
      seen.buttons = texts(first, ".modebar-btn").length;
      const button = first.querySelectorAll(".updatemenu-button")[1];
      button.dispatchEvent(new MouseEvent("click", {bubbles: true}));
      await pause(300);
      seen.switched = described(first.id).axes;
      seen.place = first.data[1].x[0];
    }
    seen.asked = performance.getEntriesByType("resource").map((entry) => entry.name);
  } catch (error) { window.problems.push(String(error)); }
  seen.problems = window.problems;
  document.body.setAttribute("data-probe", JSON.stringify(seen));
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The path of a Chromium."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        reason = f"none of {', '.join(_BROWSERS)} is installed (Debian: apt-get install chromium)"
        if os.environ.get("LLM_PRETRAIN_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def probe(browser: str, root: Path, folder: Path) -> dict[str, Any]:
    """What the page of the runs in `root` looks like from within a browser."""
    page = folder / "page.html"
    assert report([str(root), f"--out={page}"]) == 0
    text = page.read_text(encoding="utf-8")
    text = text.replace("</title>", f"</title>{_WATCH}", 1)
    text = text.replace("</body>\n</html>", f"{_PROBE}</body>\n</html>")
    page.write_text(text, encoding="utf-8")
    command = [
        browser,
        *_FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    found = re.search(r'data-probe="([^"]*)"', done.stdout.decode("utf-8", "replace"))
    assert found, done.stderr.decode("utf-8", "replace")[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


def test_charts_hover_and_switch(browser: str, tmp_path: Path) -> None:
    runs = demo(tmp_path / "runs")
    names = [run.record.name for run in runs[:-1]] + ["demo-cosine (from scratch)"]
    seen = probe(browser, tmp_path / "runs", tmp_path)
    assert seen["problems"] == []
    assert seen["asked"] == []
    for chart in ("validation-loss", "training-loss", "learning-rate"):
        assert seen[chart]["traces"] == seen[chart]["lines"] == len(runs)
        assert seen[chart]["names"] == names
        assert seen[chart]["axes"][0] == "Training tokens"
    assert seen["validation-loss"]["axes"][1] == "Validation loss (nats per token)"
    value = steady_loss(300) - 0.17
    assert "demo.240-300.1-sqrt" in seen["hover"]
    assert "step 300, 614,400 tokens" in seen["hover"]
    shown = re.search(r"(\d\.\d{4}) ± 0\.0200", seen["hover"])
    assert shown
    assert float(shown[1]) == pytest.approx(value, abs=0.02)
    assert seen["buttons"] == 6
    assert seen["switched"][0] == "Steps (optimizer updates)"
    assert seen["place"] == 240


def test_names_with_markup_are_shown_as_they_are(browser: str, tmp_path: Path) -> None:
    trunk = create(config(tmp_path / "runs", "demo"))
    branch(trunk, **ends(300))
    name = "<b>bold</b> & \"q\" 'a' %{x} $y$"
    renamed(trunk, name)
    seen = probe(browser, tmp_path / "runs", tmp_path)
    assert seen["problems"] == []
    assert set(seen) >= {"learning-rate"}
    assert "validation-loss" not in seen  # nothing was measured yet
    assert seen["learning-rate"]["names"] == [name, "demo.240-300.1-sqrt"]
