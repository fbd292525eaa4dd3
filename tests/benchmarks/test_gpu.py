"""What is measured on a GPU, where there is none: the search, the script and the tables."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import collect
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parts, plan, sitting, study, table
from benchmarks.gpu.records import Measured
from benchmarks.gpu.search import OutOfTimeError, largest, likely, too_large
from benchmarks.gpu.sitting import MEMORY, TIME, Sitting
from llm_pretrain.config.compose import compose
from llm_pretrain.estimate.plan import estimate
from tests.support import ROOT

RECORDED = Path(__file__).with_name("recorded")
SMALL = [*plan.TINY, f"data.sequence_length={plan.TINY_SEQUENCE}"]


class Device:
    """Has room for so many sequences; remembers what was tried."""

    def __init__(self, room: int, tries: int = 99) -> None:
        self.room, self.left, self.tried = room, tries, list[int]()

    def __call__(self, size: int) -> str | None:
        if self.left == 0:
            raise OutOfTimeError
        self.left -= 1
        self.tried.append(size)
        return f"ran {size}" if size <= self.room else None


@pytest.mark.parametrize("start", [1, 2, 4, 8, 16, 32])
def test_the_largest_size_is_found_from_any_start(start: int) -> None:
    for room in range(35):
        device = Device(room)
        found = largest(device, start, most=32)
        best = max((2**n for n in range(6) if 2**n <= room), default=None)
        assert found == (None if best is None else (best, f"ran {best}"))
        assert len(device.tried) == len(set(device.tried))


def test_the_search_keeps_what_it_has_when_time_is_up() -> None:
    assert largest(Device(64, tries=2), 4) == (8, "ran 8")
    with pytest.raises(OutOfTimeError):
        largest(Device(2, tries=1), 4)


def test_what_is_hopeless_is_not_tried() -> None:
    device = Device(100)
    assert largest(device, 1, hopeless=lambda size, found: size > 4) == (4, "ran 4")
    assert device.tried == [1, 2, 4]


def test_hopeless_is_what_half_of_it_nearly_filled() -> None:
    # 10 for the state and 8 a sequence, in 100: 11 fit.
    needs: Callable[[int], int] = lambda size: 10 + 8 * size  # noqa: E731
    assert [n for n in (2, 4, 8, 16) if too_large(n, needs(n // 2), 10, 100)] == [16]


def test_the_first_size_is_the_largest_that_the_estimate_allows() -> None:
    batch = ["data.micro_batch=4", "data.global_batch=4"]
    held = sum(estimate(compose([*SMALL, *batch])).memory["none"].held.values())
    assert likely(SMALL, round(held / 0.94)) == 4
    assert likely(SMALL, round(held / 0.96)) == 2
    assert likely(SMALL, 1) == 1


def made(out: Path, only: str = "") -> Sitting:
    return Sitting("speed", out, {"memory": 0, "note": 1}, {"PATH": ""}, only=only)


def test_a_sitting_keeps_results_and_reasons(tmp_path: Path) -> None:
    seat = made(tmp_path, only="B$")
    assert [name for name in ("1B", "B1") if seat.wanted(name)] == ["1B"]
    ran = seat.run([sys.executable, "-c", "print('error: no such thing'); exit(2)"])
    assert (ran.code, ran.why, ran.out_of_memory) == (2, "no such thing", False)
    full = seat.run([sys.executable, "-c", "raise MemoryError('CUDA out of memory. Tried')"])
    assert (full.why, full.out_of_memory) == (MEMORY, True)
    assert not seat.may_begin("later", sitting.START_SECONDS + 1)
    seat.record("1B", {"x": 1})
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["items"] == [
        {"name": "later", "result": None, "why": TIME},
        {"name": "1B", "result": {"x": 1}, "why": None},
    ]
    assert content["note"] == 1
    assert "no such thing" in (tmp_path / "speed.log").read_text()


def test_what_runs_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitting, "END_SECONDS", 0.0)
    ran = made(tmp_path).run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert ran.ended
    assert ran.why == "ended, the time was up"
    assert ran.seconds < 30


def test_tables_have_what_was_recorded() -> None:
    """The recordings are of QUICK=1 on a CPU."""
    sections = {part: table.section(part, [RECORDED]) for part in parts.PARTS}
    assert all("(quick: no figures)" in text for text in sections.values())
    result = recorded("speed", "1B, compiled")
    row = cells(sections["speed"], "1B, compiled")
    assert row[1] == str(result["micro_batch"])
    assert row[2] == f"{result['step']['tokens_per_second']['median']:,.0f}"
    assert row[-1] == "flash"
    assert (
        "package flash-attn-3 is not installed" in cells(sections["speed"], "1B, compiled, fa3")[2]
    )
    assert cells(sections["speed"], "3B, compiled")[2] == "not yet measured"
    (name, _), *_ = study.expected()
    assert cells(sections["study"], name)[1:] == ["", "12,025,856", "not yet measured"]
    gap = recorded("fp8", parts.GAP)["held_out"]
    assert f"{gap['mean']:+.5f} ± {gap['stderr']:.5f} (16 sequences)" in sections["fp8"]
    ratio = recorded("peers", "124M")["rows"][-1]["median"]
    assert cells(sections["peers"], "124M: ours / Hugging Face, bf16 weights")[2] == f"{ratio:.4f}"
    longest = max(
        recorded("profile", "1B, 4 passes")["profile"]["parts"].items(), key=lambda p: p[1]
    )
    assert cells(sections["profile"], "1B, 4 passes")[1:3] == [
        longest[0],
        f"{1e3 * longest[1]:.2f}",
    ]


def test_results_has_every_row_that_is_to_be_measured() -> None:
    text = collect.RESULTS.read_text()
    for part in parts.PARTS:
        assert f"\n### {part}\n" in text
        for line in table.section(part, []).splitlines():
            if line.startswith("| "):
                assert f"\n{line.split(' | ')[0]} |" in text, line


def test_a_subsection_is_replaced_and_the_rest_kept() -> None:
    text = (
        "# All\n\n## GPU\n\ntables\n\n### speed\n\nold\n\n### fp8\n\nkept\n\n## Remarks\n\n- one\n"
    )
    new = table.replaced(text, "speed", "### speed\n\nnew\n")
    assert new == text.replace("old\n\n### fp8", "new\n\n### fp8")
    last = table.replaced(new, "fp8", "### fp8\n\nalso new\n")
    assert last == new.replace("kept", "also new")
    added = table.replaced(last, "study", "### study\n\nit\n")
    assert added == last.replace("## Remarks", "### study\n\nit\n\n## Remarks")


def test_a_later_call_adds_and_never_takes_away() -> None:
    first: list[dict[str, Any]] = [
        {"name": "a", "result": {"x": 1}, "why": None},
        {"name": "b", "result": None, "why": TIME},
    ]
    later: list[dict[str, Any]] = [
        {"name": "a", "result": None, "why": MEMORY},
        {"name": "b", "result": {}, "why": None},
    ]
    measured = Measured("speed")
    measured.add(first, {})
    measured.add(later, {})
    assert (measured.result("a"), measured.result("b")) == ({"x": 1}, {})


def test_quick_figures_are_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "RESULTS.md"
    shutil.copyfile(collect.RESULTS, results)
    before = results.read_text()
    monkeypatch.setattr(collect, "RESULTS", results)
    assert gpu.main(["table", "--write", str(RECORDED)]) == 2
    assert "QUICK=1" in capsys.readouterr().err
    assert results.read_text() == before
    real = tmp_path / "real"
    real.mkdir()
    content = json.loads((RECORDED / "speed.json").read_text())
    (real / "speed.json").write_text(json.dumps({**content, "quick": False}))
    assert gpu.main(["table", "--write", str(real)]) == 0
    assert table.section("speed", [real]) in results.read_text()


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["speed", "a", "b"], ["table", "absent"]])
def test_bad_arguments(arguments: list[str]) -> None:
    assert gpu.main(arguments) == 2


ITEMS = {
    "check": "training for 20 steps",
    "speed": "1B, compiled(, fa3)?$",
    "fp8": f"{parts.GAP}|3B, fp8",
}
"""Of the parts with several that run the same code; all of the others."""


@pytest.mark.slow
@pytest.mark.parametrize("part", list(parts.PARTS))
def test_every_part_runs_on_a_cpu(part: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), part, str(tmp_path / "out")],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
            "QUICK": "1",
            "ITEMS": ITEMS.get(part, ""),
            "HOME": str(tmp_path),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = Measured.read(part, [tmp_path / "out"])
    without = {name for name, item in measured.items.items() if item["result"] is None}
    assert without == ({"1B, compiled, fa3"} if part == "speed" else set()), measured.items
    assert len(measured.items) > len(without)
    assert all(re.search(ITEMS.get(part, ""), name) for name in measured.items)
    assert not list((ROOT / "runs").glob(".study-*"))


def recorded(part: str, name: str) -> dict[str, Any]:
    items = json.loads((RECORDED / f"{part}.json").read_text())["items"]
    found: dict[str, Any] = next(item["result"] for item in items if item["name"] == name)
    return found


def cells(text: str, first: str) -> list[str]:
    """Of the first row of a table that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]
