"""Where DeepSpeed is not installed, the rest works, and who asks for it is told what to install."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, record, tiny

COMMANDS = """
import json, sys
from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded

codes = [guarded(dispatch, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps(codes))
"""


def others(folder: Path) -> Path:
    """A folder with everything that is installed here but DeepSpeed."""
    folder.mkdir()
    sites = [Path(p) for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    for entry in (entry for site in sites for entry in site.iterdir()):
        link = folder / entry.name
        if not (entry.name.startswith("deepspeed") or link.is_symlink()):
            link.symlink_to(entry)
    return folder


def test_without_deepspeed(tiny_corpus: Path, cache: Path, tmp_path: Path) -> None:
    ask = (f"data.cache={cache}", "schedule.total=6 steps", "schedule.warmup=2 steps")
    commands = [
        ["train", *tiny(tmp_path / "fsdp", *ask, "engine=fsdp")],
        ["train", *tiny(tmp_path / "zero", *ask, "engine=deepspeed")],
        ["estimate", "model=demo"],
        # ZeRO is planned in closed form, which needs the package no more than the cluster.
        ["estimate", "model=demo", "engine=deepspeed"],
    ]
    path = os.pathsep.join([str(ROOT), str(others(tmp_path / "packages"))])
    done = subprocess.run(
        # Without the site module, which would add the packages of this environment.
        [sys.executable, "-S", "-c", COMMANDS, json.dumps(commands)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 2, 0, 0], done.stderr
    assert record(tmp_path / "fsdp")["state"] == "finished"
    assert "error: engine: deepspeed is not installed; pip install" in done.stderr
    assert not (tmp_path / "zero").exists()
