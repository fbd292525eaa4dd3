"""Shell files, sites' settings and recipes of images: what linters say, and that they agree."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launch.profile import sbatch_options
from llm_pretrain.config.compose import compose
from tests.support import ROOT

SITES = sorted(path.stem for path in (ROOT / "slurm" / "sites").iterdir())
EDF = sorted((ROOT / "docker" / "edf").iterdir())
FOLDERS = (".ci", "benchmarks", "docker", "launch", "slurm", "tests")


def shell_files() -> list[Path]:
    """Every file of the project that a shell reads."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in ("", ".sh", ".sbatch", ".env"):
                first = path.read_bytes()[:64].split(b"\n")[0]
                if path.suffix or re.match(rb"#!.*\b(ba)?sh$", first):
                    found.append(path)
    return found


def linter(name: str) -> str:
    """A program of the development environment, which need not be activated."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert path, f"{name} is not installed; it comes with the extra `dev`"
    return path


def output(*command: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_shell_files_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in shell_files()}
    assert names >= {
        ".ci/run",
        "benchmarks/gpu.sh",
        "docker/install.sh",
        "launch/requeue.sh",
        "slurm/chain.sbatch",
        "slurm/sites/alps_clariden.env",
        "tests/launch/golden/h100_ib-pyxis.sbatch",
        "tests/system-packages.sh",
    }


def test_shellcheck_finds_nothing() -> None:
    done = output(linter("shellcheck"), "--external-sources", *shell_files(), cwd=ROOT)
    assert (done.stdout, done.returncode) == ("", 0)


def test_shellcheck_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "bad.sh").write_text("#!/bin/sh\nrm $1\n")
    assert "SC2086" in output(linter("shellcheck"), tmp_path / "bad.sh").stdout


@pytest.mark.parametrize("path", shell_files(), ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    done = output("bash", "-n", path)
    assert (done.stderr, done.returncode) == ("", 0)


def test_hadolint_finds_nothing() -> None:
    done = output(linter("hadolint"), "--no-color", ROOT / "docker" / "Dockerfile")
    assert (done.stdout, done.returncode) == ("", 0)


def test_hadolint_would_find_something() -> None:
    done = output(linter("hadolint"), "--no-color", "-", input="FROM a:1\nRUN cd /x && ls\n")
    assert "DL3003" in done.stdout


@pytest.mark.parametrize("path", EDF, ids=lambda path: path.stem)
def test_environment_definition_files(path: Path) -> None:
    """What the container engine reads: known keys, strings as values."""
    edf = tomllib.loads(path.read_text())
    assert set(edf) <= {
        "image",
        "mounts",
        "writable",
        "entrypoint",
        "workdir",
        "env",
        "annotations",
    }
    assert all(re.fullmatch(r"/[\w/]+:/[\w/]+", mount) for mount in edf["mounts"])
    assert all(isinstance(value, str) for value in edf["env"].values())
    for hook in edf["annotations"]["com"]["hooks"].values():
        assert hook["enabled"] in ("true", "false")


def test_images_get_all_that_installing_needs() -> None:
    """The Apptainer recipe and the Dockerfile copy the same, and all that the build reads."""
    docker = (ROOT / "docker" / "Dockerfile").read_text()
    copied = {n for line in re.findall(r"^COPY (.*) \S+$", docker, re.M) for n in line.split()}
    recipe = (ROOT / "docker" / "apptainer.def").read_text()
    files = recipe.partition("%files\n")[2].partition("\n\n")[0].split("\n")
    assert {line.split()[0] for line in files} == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", *wheel["packages"], *wheel["force-include"]}
    assert copied == needed | {"README.md", "LICENSE", "docker/install.sh"}


@pytest.mark.parametrize("name", SITES)
def test_a_sites_file_says_what_its_profile_says(name: str) -> None:
    cluster = compose([f"cluster={name}"]).cluster
    slurm, kind = cluster.slurm, cluster.slurm.container.kind
    site = sourced(name)
    options = {
        **sbatch_options(slurm),
        "ntasks-per-node": cluster.devices_per_node,
        "signal": f"{slurm.signal}@{slurm.signal_seconds}",
    }
    assert sorted(site["sbatch_options"]) == sorted(
        f"--{n}" if value is True else f"--{n}={value}" for n, value in options.items()
    )
    image = {"edf": ["--environment=an image"]}.get(kind, [])
    assert site["srun_options"] == [*image, *slurm.srun]
    inside = ["apptainer", "exec", "--nv", "--bind", str(ROOT), "an image"]
    assert site["container"] == (inside if kind == "apptainer" else [])
    assert site["bind"] == slurm.bind
    exports = (line.removeprefix("export ") for line in site["rank"][0].strip().split("\n"))
    variables = dict(line.split("=", 1) for line in exports)
    assert {n: shlex.split(v)[0] for n, v in variables.items()} == slurm.environment
    body = site["setup"][0].partition("{")[2].rpartition("}")[0]
    assert [line.strip(" ;") for line in body.strip().split("\n")] == slurm.setup
    assert site["VENV"] == ["" if kind == "none" else "none"]


def sourced(site: str) -> dict[str, list[str]]:
    """The variables that a site's file sets, as bash reads them."""
    names = ("sbatch_options", "srun_options", "container", "bind")
    script = [". slurm/common.sh", "VENV=${VENV:-}"]
    script += [f'printf "%s\\0" {name} "${{{name}[@]}}" ""' for name in names]
    script += [f'printf "%s\\0" {name} "${name}" ""' for name in ("rank", "VENV")]
    script += ['printf "%s\\0" setup "$(declare -f setup)" ""']
    env = {"PATH": os.environ["PATH"], "SITE": site, "IMAGE": "an image"}
    done = output("bash", "-c", "\n".join(script), cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for block in done.stdout.split("\0\0"):
        name, *values = block.strip("\0").split("\0") if block else [""]
        found[name] = values or ([""] if name in ("rank", "VENV") else [])
    return found
