"""What several test files need: a tiny corpus, commands in processes, comparing runs bit by bit."""

import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from llm_pretrain.train import hardware

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "tests" / "conf"
TIMED = ("tokens_per_second", "mfu", "mfu_causal")


def write_corpus(path: Path, documents: int = 300) -> None:
    """Sentences from a small vocabulary, the same in every call."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    with path.open("w") as file:
        for i in range(documents):
            text = " ".join(draw.choices(words, k=80))
            file.write(json.dumps({"id": f"doc{i}", "text": text}) + "\n")


def tiny(place: Path, *overrides: str) -> list[str]:
    """Arguments of `train` for a run of the tiny experiment at `place`."""
    return ["experiment=tiny", f"--config-dir={CONF}", f"run.dir={place}", *overrides]


def command(*arguments: str, cwd: Path | None = None, **env: str) -> "subprocess.CompletedProcess":
    """Run `llm-pretrain ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "llm_pretrain.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        timeout=300,
        check=False,
    )


def measure_once() -> None:
    """Let this process measure each peak of the machine once and not in each run: 0.3 s a time."""
    hardware.measure_matmul = functools.cache(hardware.measure_matmul)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def record(run: Path) -> dict[str, Any]:
    """run.json."""
    loaded: dict[str, Any] = json.loads((run / "run.json").read_text())
    return loaded


def tensors(run: Path, step: int) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    out = run / f"tensors-{step}.pt"
    dcp_to_torch_save(run / "checkpoints" / f"step-{step:06d}", out)
    loaded: dict[str, Any] = torch.load(out)
    out.unlink()
    return loaded


def assert_same_bits(a: Any, b: Any, where: str = "") -> None:
    """Two nested dicts of tensors are equal to the last bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    else:
        assert torch.equal(a, b), where


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Two runs have measured the same and hold the same state at `step`."""
    assert metrics(a) == metrics(b)
    assert_same_bits(tensors(a, step), tensors(b, step))
