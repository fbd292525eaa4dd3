"""Runs on the test cluster: our commands as a user gives them, and what comes of the jobs."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.host import until
from tests.support import CONF, ROOT, command, metrics, record

SECONDS = 240
"""For a job of four ranks to start on two cores, which takes ten seconds on an idle machine."""


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

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`llm-pretrain ARGUMENTS` on the login node."""
        done: subprocess.CompletedProcess[str] = command(
            *arguments, cwd=self.place, **self.environment()
        )
        return done

    def ask(self, name: str, *overrides: str) -> list[str]:
        """Arguments of `train` for a job."""
        where = (f"run.dir={self.place / name}", f"data.cache={self.cache}")
        return [
            "experiment=tiny",
            f"--config-dir={CONF}",
            "cluster=local_slurm",
            *where,
            *overrides,
        ]

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

    def reach(self, name: str, step: int) -> None:
        """Wait until a run has measured a step."""
        run = self.place / name

        def reached() -> bool:
            file = run / "metrics.jsonl"
            return file.exists() and any(row["step"] >= step for row in metrics(run))

        until(reached, f"{run} at step {step}", SECONDS)

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
