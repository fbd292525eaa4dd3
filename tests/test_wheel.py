"""The wheel works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_the_wheel_brings_its_configuration(tmp_path: Path, tiny_corpus: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "llm_pretrain" / "conf" / "train.yaml").is_file()
    assert (site / "launch" / "job.py").is_file()
    arguments = [
        "experiment=demo", "schedule.total=3 steps", "schedule.warmup=0 steps", "plan=[]",
        "data.sources.stdlib.limit=60", "eval.sequences=2",
        "data.validation_fraction=0.2", f"data.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-m", "llm_pretrain.cli", "train", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "run.json").is_file()
