"""The demo and every command of the README, run as they are written.

The demo's commands are processes of their own, as in a shell. Those of the README are forked from a
process that has imported torch already, with the same arguments in the same folder.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ranks.commands import Zygote
from tests.support import ROOT

pytestmark = pytest.mark.slow


def run(line: str, cwd: Path) -> str:
    """Run a line with `llm-pretrain` by this interpreter; its standard output."""
    program, *words = shlex.split(line)
    assert Path(program).name == "llm-pretrain"
    done = subprocess.run(
        [sys.executable, "-m", "llm_pretrain.cli", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fork(zygote: Zygote, line: str, cwd: Path) -> None:
    """Run a line with `llm-pretrain` or `torchrun`, on as many ranks as that would start."""
    program, *words = shlex.split(line)
    size = 1
    if program == "torchrun":
        *flags, count, option, module = words[:5]
        assert flags == ["--standalone", "--nproc-per-node"], line
        assert (option, module) == ("-m", "llm_pretrain.train"), line
        size, words = int(count), ["train", *words[5:]]
    else:
        assert program == "llm-pretrain", line
    # A study is many runs.
    done = zygote.run(size, words, cwd=cwd, limit=1800)
    assert not any(done.codes), f"{line}\n{done}"


def readme_commands() -> list[str]:
    """The lines of the README's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """The folder in which the recipe of `make demo` ran, and what its commands printed."""
    place = tmp_path_factory.mktemp("demo")
    recipe = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in recipe.stdout.splitlines() if "/llm-pretrain " in line]
    assert len(lines) == 5
    yield place, [run(line, place) for line in lines]


def rows(run_directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").open()]


def evaluation(run_directory: Path, step: int) -> tuple[float, float]:
    """Held-out loss and its standard error at a step."""
    (row,) = (r for r in rows(run_directory) if r["step"] == step and "val_loss" in r)
    return row["val_loss"], row["val_stderr"]


def test_each_cooldown_ends_clearly_below_the_trunk(demo: tuple[Path, list[str]]) -> None:
    runs = demo[0] / "runs"
    branches = sorted(runs.glob("demo.*1-sqrt"))
    assert len(branches) == 3
    for branch in branches:
        end = int(branch.name.split(".")[1].split("-")[1])
        cooled, error = evaluation(branch, end)
        constant, other_error = evaluation(runs / "demo", end)
        assert constant - cooled > 3 * max(error, other_error), branch.name


def test_the_demo_prints_its_table_and_leaves_its_report(demo: tuple[Path, list[str]]) -> None:
    place, outputs = demo
    report = place / "runs" / "report.html"
    assert outputs[-1].strip().splitlines()[-1] == "runs/report.html"
    page = report.read_text()
    for name in ("demo.320-400.1-sqrt", "demo.400-500.1-sqrt", "demo-cosine"):
        assert name in page
        assert name in outputs[-2]


def test_every_command_of_the_readme(demo: tuple[Path, list[str]], zygote: Zygote) -> None:
    place, _ = demo
    commands = readme_commands()
    assert len(commands) > 10
    for line in commands:
        fork(zygote, line, place)
    ended = {path.name for path in (place / "runs").iterdir()}
    assert {"demo.300-375.1-sqrt", "demo.450-562.1-sqrt", "demo-hf", "hybrid", "zero"} <= ended


def test_the_mixture_of_the_readme(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "myconf" / "data").mkdir(parents=True)
    (tmp_path / "myconf" / "data" / "web.yaml").write_text(text)
    (tmp_path / "texts").mkdir()
    lines = (json.dumps({"text": f"page {i} " * 400}) for i in range(300))
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines))
    limits = 'schedule.total="2 steps" schedule.warmup="0 steps" data.sources.code.limit=100'
    limits += " data.validation_fraction=0.1 eval.sequences=4"
    run(f"llm-pretrain train data=web --config-dir myconf {limits}", tmp_path)
