"""Every benchmark runs, and prints figures that are numbers; how large they are is not tested."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import collect, engines, loader, loop, reshard, save, startup
from benchmarks.result import RATIO, Row, plain, ratios

Main = Callable[[Sequence[str]], None]


@pytest.mark.parametrize(
    ("module", "main"),
    [
        ("loop", loop.main),
        ("save", save.main),
        ("reshard", reshard.main),
        ("engines", engines.main),
        ("loader", loader.main),
        ("startup", startup.main),
    ],
)
def test_quick(module: str, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--folder", str(tmp_path)])
    *table, line = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts["benchmark"] == module
    assert facts["command"] == f"python -m benchmarks.{module} --quick --folder {tmp_path}"
    assert facts["device"]["cores"] > 0
    assert facts["versions"]["torch"]
    assert len(table) == len(facts["rows"]) + 1
    for row in facts["rows"]:
        assert row["min"] <= row["median"] <= row["max"] < math.inf, row
        # A tiny state may fit into memory that a process has already.
        assert row["min"] > 0 or "memory" in row["what"], row
    assert module == "startup" or any(row["unit"] == RATIO for row in facts["rows"])
    assert facts.get("largest_loss_difference", 0) < 1e-4
    assert list(tmp_path.iterdir()) == []


def test_markdown_has_a_row_for_each_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader.main(["--quick", "--markdown", "--folder", str(tmp_path)])
    text = capsys.readouterr().out
    assert "- Command: `python -m benchmarks.loader --quick --folder" in text
    assert text.count("\n| ") == 1 + 3 * 2 * len(loader.SHAPES)


def test_results_has_a_section_for_each_benchmark() -> None:
    text = collect.RESULTS.read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [*collect.MODULES, "GPU", "Remarks"]


def test_collect_replaces_one_section_and_keeps_the_rest() -> None:
    text = "# All\n\n## loop\n\nold\n\n## GPU\n\nkept\n"
    new = collect.replaced(text, "loop", "## loop\n\nnew\n\n")
    assert new == "# All\n\n## loop\n\nnew\n\n## GPU\n\nkept\n"
    assert collect.replaced(text, "GPU", "## GPU\n\nmeasured\n").endswith(
        "old\n\n## GPU\n\nmeasured\n"
    )


def test_ratios_are_taken_pair_by_pair() -> None:
    row = ratios("a / b", [2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert row.samples == [2.0, 3.0, 4.0]
    assert row.median == 3.0


def test_the_table_is_aligned() -> None:
    lines = plain([Row("short", "s", [0.5]), Row("a longer name", "MB/s", [12345.0])]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["short", "s", "0.5000", "0.5000", "0.5000", "1"]
    assert lines[2].split()[-4:] == ["12,345", "12,345", "12,345", "1"]
