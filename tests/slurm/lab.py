"""Runs on the test cluster: our commands as a user gives them, and what comes of the jobs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.host import until
from tests.support import CONF, ROOT, command, metrics, record

SECONDS = 240
"""For a job of four ranks to start on two cores, which takes ten seconds on an idle machine."""
ONE_RANK = ("cluster.nodes=1", "cluster.devices_per_node=1")
TWO_NODES = ("cluster.nodes=2", "cluster.devices_per_node=1")
"""Overrides for less than the profile's two nodes with two ranks each."""


@dataclass(frozen=True)
class Lab:
    """A folder of runs of the tiny experiment, on four ranks over two nodes."""

    slurm: Cluster
    place: Path
    corpus: Path
    cache: Path

    def environment(self) -> dict[str, str]:
        """Of a process on the login node."""
        own = {"TINY_CORPUS": str(self.corpus), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **self.slurm.environment(), **own}

    def command(self, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """`llm-pretrain ARGUMENTS` on the login node."""
        done: subprocess.CompletedProcess[str] = command(
            *arguments, cwd=self.place, **{**self.environment(), **env}
        )
        return done

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        """The same, going on beside this process, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "llm_pretrain.cli", *arguments],
            cwd=self.place,
            env={**self.environment(), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def status(self, name: str) -> str:
        """A run's row in what `llm-pretrain status` prints, without its name."""
        done = self.command("status", str(self.place), COLUMNS="200")
        assert done.returncode == 0, done.stderr
        rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
        (row,) = (words[1:] for words in rows if words[:1] == [name])
        return " ".join(row)

    def instead_of_sbatch(self, then: str) -> str:
        """A PATH on which sbatch hands its job to Slurm, and then runs lines of shell in which
        $said is what Slurm's own has printed."""
        folder = self.place / "bin"
        folder.mkdir()
        file = folder / "sbatch"
        file.write_text(f'#!/bin/bash\nsaid=$({shutil.which("sbatch")} "$@") || exit\n{then}\n')
        file.chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    def ask(self, name: str, *overrides: str) -> list[str]:
        """Arguments of `train` for a job."""
        return [*self.basis(), f"run.dir={self.place / name}", *overrides]

    def sweep(self, *overrides: str) -> list[str]:
        """Arguments of `train` for an array of jobs."""
        return ["-m", *self.basis(), f"run.root={self.place}", *overrides]

    def basis(self) -> list[str]:
        """What every `train` is asked for."""
        own = (f"--config-dir={CONF}", "cluster=local_slurm", f"data.cache={self.cache}")
        return ["experiment=tiny", *own]

    def train(self, name: str, *overrides: str) -> str:
        """Submit a run; the number of its job."""
        done = self.command("train", *self.ask(name, *overrides))
        assert done.returncode == 0, done.stderr
        number = self.number(name)
        assert f"submitted as job {number}" in done.stdout
        return number

    def number(self, name: str) -> str:
        """The number of a run's job."""
        return str(json.loads((self.place / name / "job.json").read_text())["id"])

    def has_reached(self, name: str, step: int) -> bool:
        """Whether a run has measured a step."""
        run = self.place / name
        file = run / "metrics.jsonl"
        return file.exists() and any(row["step"] >= step for row in metrics(run))

    def reach(self, name: str, step: int) -> None:
        """Wait until a run has measured a step."""
        until(lambda: self.has_reached(name, step), f"{name} at step {step}", SECONDS)

    def finish(self, name: str, seconds: float = SECONDS) -> Path:
        """Wait until a run is finished and Slurm knows; its directory."""
        run = self.place / name
        until(
            lambda: record(run)["state"] == "finished", f"end of {run}\n{self.log(name)}", seconds
        )
        self.slurm.wait_for(self.number(name), "COMPLETED", seconds=seconds)
        return run

    def log(self, name: str) -> str:
        """What the job of a run has said."""
        run, number = self.place / name, self.number(name)
        files = sorted((run / "jobs").glob(f"*/{number}_*_log.out"))
        return "".join(file.read_text() for file in files)

    def starts(self, name: str) -> list[int]:
        """The step from which each session of a run trained."""
        return [session["from_step"] for session in record(self.place / name)["sessions"]]

    def submitted(self) -> int:
        """How many jobs Slurm was ever given for runs here; each of an array counts once begun."""
        submissions = {path.name for path in (self.place / ".jobs").iterdir()}
        columns = ("--format=JobName%100", "--noheader", "--parsable2", "--allocations")
        said = self.slurm.run("sacct", *columns).splitlines()
        return sum(name in submissions for name in said)
