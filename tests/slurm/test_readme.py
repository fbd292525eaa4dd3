"""Every command of the README's section on clusters: as it is written where it only shows what it
would do, and with a small run in the place of a large one where it does it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.host import until
from tests.slurm.lab import ONE_RANK, SECONDS, Lab
from tests.support import CONF, ROOT, assert_same_run, metrics, record

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROGRAMS = ("llm-pretrain", "torchrun", "sbatch", "srun", "bash")
PLAN = 'plan=[{at: ["20 steps"], cooldown: {length: 20%}}]'
TWO_NODES = "cluster=local_slurm cluster.nodes=2 cluster.devices_per_node=1"
UNFIT = 3
"""Exit code of a preflight; two cores that others use, too, may be slow."""
EXCLUDED = "n4"


def readme_commands() -> list[str]:
    """The commands in the section's indented blocks and in its sentences, where a program's name
    alone is none."""
    found = re.search(r"^## On a cluster\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert found
    assert "```" not in found[1]
    blocks = re.findall(r"^    (.*)$", found[1], re.M)
    text = re.sub(r"^    .*$", "", found[1], flags=re.M)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    lines = [*blocks, *(span for span in spans if " " in span)]
    return [line for line in lines if line.partition(" ")[0] in PROGRAMS]


@dataclass(frozen=True)
class Site:
    """A user's shell on a cluster: the project's scripts, its commands on the PATH, a folder."""

    lab: Lab

    def __post_init__(self) -> None:
        shutil.copytree(ROOT / "slurm", self.lab.place / "slurm")
        folder = self.lab.place / "bin"
        folder.mkdir()
        for name, module in (
            ("llm-pretrain", "llm_pretrain.cli"),
            ("torchrun", "torch.distributed.run"),
        ):
            (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            (folder / name).chmod(0o755)

    def shell(self, line: str, *codes: int) -> str:
        """Run a line; its output. The exit code must be 0, or one of `codes`."""
        own = {"PATH": f"{self.lab.place}/bin:{os.environ['PATH']}", "VENV": sys.prefix}
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.lab.place,
            env={**self.lab.environment(), **own, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode in (0, *codes), f"{line}\n{done.stdout}"
        return done.stdout

    def small(self, name: str) -> str:
        """Overrides that make a run of one rank and 40 tiny steps of any other one."""
        tiny = f"--config-dir={CONF} experiment=tiny data.cache={self.lab.cache} run.name={name}"
        return f" {tiny} cluster=local_slurm {' '.join(ONE_RANK)}"


def train(site: Site, line: str) -> None:
    script = site.shell(f"{line} --dry-run")
    assert f"#SBATCH --nodes={number(line, 'cluster.nodes')}\n" in script
    said = site.shell(f"{line} {site.small('124m')} '{PLAN}'")
    assert "runs/124m: submitted as job" in said


def sweep(site: Site, line: str) -> None:
    assert "#SBATCH --array=0-2%" in site.shell(f"{line} --dry-run")
    assert site.shell(f"{line} {site.small('sweep')}").count("submitted as job") == 3


def apply(site: Site, line: str) -> None:
    saved = site.lab.place / "runs" / "124m" / "checkpoints" / "step-000010"
    until(saved.exists, "a checkpoint", SECONDS)
    place = 'at="[10 steps]" cluster=local_slurm ' + " ".join(ONE_RANK)
    assert "submitted as job" in site.shell(f"{line} {place}")


def watch(site: Site, line: str) -> None:
    assert "124m.20-25.1-sqrt: finished" in site.shell(f"{line} --every 0.5")


def status(site: Site, line: str) -> None:
    rows = site.shell(line).splitlines()
    for name in ("124m", "124m.20-25.1-sqrt"):
        (row,) = (words for words in map(str.split, rows) if name in words)
        assert "finished" in row


def preflight(site: Site, line: str) -> None:
    assert "submitted as job" in site.shell(f"{line} {TWO_NODES}", UNFIT)


def ranks_of_slurm(site: Site, line: str) -> None:
    job = line.replace("srun", "srun --nodes=2 --time=5", 1)
    site.shell(f"{job} {TWO_NODES}", UNFIT)
    assert (site.lab.place / "runs" / "preflight" / "preflight.json").exists()


def ranks_of_torchrun(site: Site, line: str) -> None:
    two = re.sub(r"--nproc-per-node \d+", "--nproc-per-node 2", line)
    # Torchrun has one exit code for all that is not 0.
    said = site.shell(f"{two} cluster=local_slurm cluster.nodes=1 cluster.devices_per_node=2", 1)
    assert "fit to train" in said


def script(site: Site, line: str) -> None:
    job = line.replace("sbatch", "sbatch --nodes=2 --time=10 --cpus-per-task=1", 1)
    site.shell(f"{job} {site.small('by-hand')}")


def exclude(site: Site, line: str) -> None:
    (site.lab.place / "runs" / "preflight" / "exclude.txt").write_text(f"{EXCLUDED}\n")
    said = site.shell(f"{line} --parsable --hold --wrap=true")
    assert site.lab.slurm.job(said.strip())["ExcNodeList"] == EXCLUDED
    site.lab.slurm.cancel([said.strip()])


def number(line: str, name: str) -> str:
    """The value of an override."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)[name]


HOW: dict[str, Callable[[Site, str], None]] = {
    r"llm-pretrain train (?!-m )": train,
    r"llm-pretrain train -m ": sweep,
    r"llm-pretrain branch apply ": apply,
    r"llm-pretrain branch watch ": watch,
    r"llm-pretrain status ": status,
    r"llm-pretrain preflight ": preflight,
    r"srun .*llm-pretrain preflight ": ranks_of_slurm,
    r"torchrun .*-m launch.preflight ": ranks_of_torchrun,
    r"sbatch slurm/train.sbatch ": script,
    r"sbatch --exclude=": exclude,
}
"""How each is tried, in this order."""


def test_every_command_of_the_section(lab: Lab, whole: Callable[..., Path]) -> None:
    site = Site(lab)
    lines = readme_commands()
    found = {pattern: [line for line in lines if re.match(pattern, line)] for pattern in HOW}
    assert sorted(line for matches in found.values() for line in matches) == sorted(lines)
    assert all(found.values()), found
    chain(site)
    for pattern, try_it in HOW.items():
        for line in found[pattern]:
            try_it(site, line)
    until(lambda: not lab.slurm.run("squeue", "--noheader"), "the end of all jobs", SECONDS)
    runs = {
        path.name: path for path in (lab.place / "runs").iterdir() if (path / "run.json").exists()
    }
    assert {record(run)["state"] for run in runs.values()} == {"finished"}
    assert {"124m.10-12.1-sqrt", "124m.20-25.1-sqrt", "chain"} <= set(runs)
    rates = {metrics(run)[-2]["lr"] for name, run in runs.items() if name.startswith("sweep.")}
    assert rates == {5e-4, 1e-3, 2e-3}
    assert_same_run(runs["by-hand"], whole(2), 40)
    assert_same_run(runs["124m"], whole(1), 40)


def chain(site: Site) -> None:
    """As the script's own head shows it."""
    line = "bash slurm/chain.sbatch run.dir=runs/chain"
    site.shell(f"OPTIONS='--time=10 --cpus-per-task=1' {line} {site.small('chain')}")
