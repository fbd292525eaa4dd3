"""Every benchmark runs, and prints figures that are numbers; how large they are is not tested."""

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks import (
    attention,
    average,
    collect,
    engines,
    file_operations,
    loader,
    loop,
    reconcile,
    reshard,
    save,
    startup,
    theory,
)
from benchmarks.engines import Variant
from benchmarks.result import RATIO, Row, plain, ratios
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout

Main = Callable[[Sequence[str]], None]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signal handlers as they were: torch's launcher sets its own and leaves them."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("module", "main"),
    [
        ("loop", loop.main),
        ("save", save.main),
        ("reshard", reshard.main),
        ("engines", engines.main),
        ("loader", loader.main),
        ("startup", startup.main),
        ("reconcile", reconcile.main),
        ("theory", theory.main),
        ("attention", attention.main),
        ("average", average.main),
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


def test_steps_ask_the_file_system_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--folder", str(tmp_path)]
    why = file_operations.missing()
    if why is not None:
        with pytest.raises(SystemExit, match="2"):
            file_operations.main(arguments)
        assert capsys.readouterr().err == f"error: {why}\n"
        return
    file_operations.main(arguments)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    most = {row["what"].removeprefix("1 rank, rank 0: "): row["max"] for row in facts["rows"]}
    assert most["step that only trains"] == 0
    # It is opened and flushed. Of one row more may be seen, of what a clock starts.
    usual = {row["what"]: row["median"] for row in facts["rows"]}
    assert usual["1 rank, rank 0: row of metrics"] == 2
    # Fewer would mean that what a save does is not counted, more that it has grown.
    assert 30 < most["checkpoint"] <= 60
    assert list(tmp_path.iterdir()) == []


def test_without_strace_nothing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="2"):
        file_operations.main(["--folder", str(tmp_path)])
    assert "strace is not installed" in capsys.readouterr().err


def test_calls_are_read_from_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    lines = [
        '7 execve("/usr/bin/python", ["python", "/disk/run"], 0x1 /* 9 vars */) = 0',
        '7 openat(AT_FDCWD</>, "/disk/run/metrics.jsonl", O_WRONLY) = 3</disk/run/metrics.jsonl>',
        '7 newfstatat(3</disk/run/metrics.jsonl>, "", {...}, AT_EMPTY_PATH) = 0',
        "8 fsync(3</disk/run/metrics.jsonl> <unfinished ...>",
        '7 openat(AT_FDCWD</>, "/disks/elsewhere", O_RDONLY) = -1 ENOENT',
        "8 <... fsync resumed>) = 0",
        '7 newfstatat(AT_FDCWD</>, "/disk/marks/1", 0x1, 0) = -1 ENOENT',
        '7 rename("/disk/run/.run.json@vm-1@7@ab.tmp", "/disk/run/run.json") = 0',
        '7 unlinkat(4</disk/run/checkpoints/step-000007>, "meta.json", 0) = 0',
        '7 openat(AT_FDCWD</>, "/disk/run", O_RDONLY) = 3</disk/run>',
        '7 openat(AT_FDCWD</>, "/disk/run/lock", O_RDONLY) = 3</disk/run/lock>',
    ]
    trace.write_text("\n".join(lines))
    counts = file_operations.Counts.of(file_operations.read(trace, Path("/disk")))
    assert [(call.name, call.file) for call in counts.steps[1]] == [
        ("openat", "metrics.jsonl"),
        ("fsync", "metrics.jsonl"),
    ]
    assert [(c.name, c.file) for c in counts.steps[2]] == [("rename", "run.json"), ("openat", "")]
    assert [call.name for call in counts.checkpoints] == ["unlinkat"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_variants_of_engines_make_their_ranks(ranks: int) -> None:
    model = [f"model.{name}={ranks}" for name in ("heads", "kv_heads")]
    sizes = [f"model.{name}={512 * ranks}" for name in ("ffn", "vocab_size")]
    length = [f"data.sequence_length={32 * ranks}", "data.tokenizer.vocab_size=300"]
    found = engines.variants(ranks)
    settings = set()
    for variant in found:
        engine = compose(variant.arguments([*model, *sizes, *length], 5)).engine
        layout = Layout.of(engine, variant.ranks)
        settings.add((engine.name, engine.offload, engine.zero_stage, layout))
    assert {variant.ranks for variant in found} == {1, ranks}
    assert len({variant.name for variant in found}) == len(settings) == len(found)


def test_an_engine_that_cannot_be_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Variant("odd", 2, ["engine.tensor=2", "model.kv_heads=1"])
    rows, refused = engines.measure(tmp_path, [odd], [], quick=True)
    assert rows == []
    assert "engine.tensor: 2 does not divide model.kv_heads=1" in refused["odd"]
    assert capsys.readouterr().err == f"odd: left out ({refused['odd']})\n"


def test_memory_beside_its_estimate() -> None:
    measured = Variant("it", 1, rows=[{"peak_memory_gib": 2.0}, {"peak_memory_gib": 3.0}])
    peak, estimated, ratio = engines.memory_rows(measured, 2.0)
    assert (peak.samples, estimated.samples, ratio.samples) == ([2.0, 3.0], [2.0], [1.0, 1.5])
    assert engines.memory_rows(Variant("without a GPU", 1, rows=[{"loss": 1.0}]), 2.0) == []


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
    assert headings == [*collect.MODULES, "GPU", "Studies", "Remarks"]


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
