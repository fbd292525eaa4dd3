"""Profiles of clusters, and the exact scripts that jobs get from them.

`python -m tests.launch.test_profiles` writes the scripts anew.
"""

import dataclasses
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import submit
from launch.profile import check_cluster, time_limit
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose, dump, override, read
from llm_pretrain.config.groups import conf_dir, groups
from llm_pretrain.errors import UserError
from llm_pretrain.records import Job

GOLDEN = Path(__file__).parent / "golden"
RUNS = Path("/shared/runs")
PROFILES = groups()["cluster"]
SLURM = [name for name in PROFILES if name != "local"]
IMAGE = "cluster.slurm.container.image=/shared/llm-pretrain.sif"
SCRIPTS = {
    **{n: [f"cluster={n}", *([IMAGE] if n in ("jupiter", "vista") else [])] for n in SLURM},
    "h100_ib-pyxis": [
        "cluster=h100_ib",
        "cluster.nodes=4",
        "cluster.slurm.sbatch={partition: gpu, gres: 'gpu:8', gpus-per-node: null}",
        "cluster.slurm.container.kind=pyxis",
        "cluster.slurm.container.image=/shared/llm-pretrain.sqsh",
        "cluster.slurm.container.mounts=['/data:/data']",
    ],
}
"""Golden file -> what is asked for."""


def cluster_of(*overrides: str) -> ClusterConfig:
    return compose(list(overrides)).cluster


def script(cluster: ClusterConfig, root: Path, code: Path | None = None, runs: int = 1) -> str:
    """The text for sbatch of runs in a folder."""
    place = code or root / ".code" / "0123abc"
    return submit.script(cluster, root, Job("demo.1a2b3c4d", "", str(place)), runs)


def rendered(name: str) -> str:
    """The scripts of one run and of an array of three, on any machine the same."""
    cluster = cluster_of(*SCRIPTS[name])
    texts = [script(cluster, RUNS, runs=runs) for runs in (1, 3)]
    text = "\n".join(texts)
    for here, there in (
        (sys.executable, "/shared/env/bin/python"),
        (str(Path.cwd()), "/shared/me"),
    ):
        text = text.replace(here, there)
    return text


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_what_they_were(name: str) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.sbatch").read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCRIPTS)


def test_the_sites_are_there() -> None:
    sites = {"alps_clariden", "jupiter", "isambard_ai", "vista", "h100_ib"}
    assert set(PROFILES) == {"local", "local_slurm", *sites}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_sets_every_field_so_that_it_resets_all(name: str) -> None:
    written = yaml.safe_load((conf_dir() / "cluster" / f"{name}.yaml").read_text())
    assert missing(ClusterConfig, written) == []
    assert written["name"] == name


def missing(cls: Any, written: dict[str, Any]) -> list[str]:
    """Fields of a dataclass of the schema, and of those in it, that a profile leaves out."""
    found = []
    for field, hint in typing.get_type_hints(cls).items():
        if field not in written:
            found.append(field)
        elif dataclasses.is_dataclass(hint):
            found += [f"{field}.{inner}" for inner in missing(hint, written[field])]
    return found


def test_what_a_profile_leaves_out_is_noticed() -> None:
    written = yaml.safe_load((conf_dir() / "cluster" / "local.yaml").read_text())
    del written["jobs"], written["slurm"]["container"]["mounts"]
    assert missing(ClusterConfig, written) == ["jobs", "slurm.container.mounts"]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_composes_and_holds(name: str, tmp_path: Path) -> None:
    config = compose([f"cluster={name}"])
    assert config.cluster.launcher == ("here" if name == "local" else "slurm")
    (tmp_path / "config.yaml").write_text(dump(config))
    assert read(tmp_path / "config.yaml") == config
    image = tmp_path / "image.sif"
    image.touch()
    kind = config.cluster.slurm.container.kind
    check_cluster(
        cluster_of(
            f"cluster={name}",
            *([f"cluster.slurm.container.image={image}"] if kind == "apptainer" else []),
        )
    )


@pytest.mark.parametrize("name", PROFILES)
def test_another_cluster_replaces_what_is_free_form(name: str) -> None:
    """As a resume or a branch chooses one: no partition or variable of the other site is left."""
    asked = [f"cluster={name}", "cluster.slurm.sbatch.account=a1", "cluster.slurm.environment.A=b"]
    config = compose(asked)
    assert config.cluster.slurm.sbatch["account"] == "a1"
    for other in PROFILES:
        assert override(config, [f"cluster={other}"]) == compose([f"cluster={other}"])


def test_another_cluster_and_an_option_beside_it() -> None:
    changed = override(
        compose(["cluster=alps_clariden"]), ["cluster=jupiter", "cluster.slurm.sbatch.account=j1"]
    )
    assert changed.cluster.slurm.sbatch["account"] == "j1"
    assert changed.cluster.slurm.sbatch["gres"] == "gpu:4"
    assert "constraint" not in changed.cluster.slurm.sbatch


def test_another_mixture_still_replaces_the_sources() -> None:
    config = compose(["data.sources.web={kind: text, path: a.txt}"])
    assert set(config.data.sources) == {"stdlib", "web"}
    changed = override(config, ["data=stdlib"])
    assert set(changed.data.sources) == {"stdlib"}


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["cluster.slurm.sbatch.nodes=4"], ["sbatch.nodes", "set cluster.nodes"]),
        (["cluster.slurm.sbatch.ntasks_per_node=4"], ["cluster.devices_per_node"]),
        (["cluster.slurm.sbatch.signal=USR1@60"], ["cluster.slurm.signal"]),
        (["cluster.slurm.sbatch.no-requeue=true"], ["no-requeue", "cluster.slurm.tries"]),
        (["cluster.slurm.sbatch.output=a.txt"], ["sbatch.output", "not free"]),
        (["cluster.slurm.sbatch.export=NONE"], ["cluster.slurm.environment"]),
        (["cluster.slurm.sbatch.time=43200"], ["sbatch.time", "43200", '"12:00:00"']),
        (["cluster.slurm.sbatch.time=soon"], ["sbatch.time", "'soon'"]),
        (["cluster.slurm.sbatch.time=05:00"], ["signal_seconds", "300", "limit of 300 s"]),
        (["cluster.slurm.sbatch.comment='a\nb'"], ["sbatch.comment", "more than one line"]),
        (["cluster.slurm.environment={A-B: c}"], ["environment.A-B", "variable"]),
        (["cluster.slurm.sbatch.gpus_per_node=4"], ["devices_per_node: 8", "gpus-per-node=4"]),
        (["cluster.slurm.sbatch.gres='gpu:h100:2'"], ["devices_per_node: 8", "gpu:h100:2"]),
        (["cluster.slurm.container.kind=pyxis"], ["container.image: missing", "kind=none"]),
        (
            ["cluster.slurm.container={kind: edf, image: none/such.toml}"],
            ["'none/such.toml' cannot be read"],
        ),
        (
            ["cluster.slurm.container={kind: apptainer, image: none.sif}"],
            ["'none.sif' cannot be read"],
        ),
    ],
)
def test_a_profile_that_cannot_work_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_cluster(cluster_of("cluster=h100_ib", *overrides))
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "limit,seconds",
    [
        ("12:00:00", 43200),
        ("00:30:15", 1815),
        ("90:00", 5400),
        ("1-12", 129600),
        ("2-00:30", 174600),
        ("1-1:1:1", 90061),
        ("UNLIMITED", None),
        ("null", None),
    ],
)
def test_time_limits_in_all_of_slurms_forms(limit: str, seconds: int | None) -> None:
    cluster = cluster_of("cluster=h100_ib", f"cluster.slurm.sbatch.time={limit}")
    assert time_limit(cluster.slurm) == seconds


def test_an_option_can_be_taken_back_in_either_spelling() -> None:
    taken = ["cluster.slurm.sbatch.gpus_per_node=null", "cluster.slurm.sbatch.exclusive=false"]
    text = script(cluster_of("cluster=h100_ib", *taken), RUNS)
    assert "--gpus-per-node" not in text
    assert "--exclusive" not in text


SAY = """#!/bin/sh
printf '%s|' "$PYTHONPATH" "$SPECIAL" "$OMP_NUM_THREADS" "$PLACE" "$RANK"
echo
"""
RECORD = """#!/bin/sh
# In the place of srun: two ranks, one after the other.
while [ "$1" != sh ]; do shift; done
for SLURM_PROCID in 0 1; do
    export SLURM_PROCID
    "$@" || exit
done
"""


@pytest.fixture
def batch(tmp_path: Path) -> typing.Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the script of a profile with ranks that say what they see: batch(overrides)."""
    code = tmp_path / "a folder" / "code"
    (code / "launch").mkdir(parents=True)
    (code / "launch" / "requeue.sh").write_text("echo begun $2\n")
    say = tmp_path / "bin" / "python"
    srun = tmp_path / "bin" / "srun"
    say.parent.mkdir()
    say.write_text(SAY)
    srun.write_text(RECORD)
    for file in (say, srun):
        file.chmod(0o755)

    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        cluster = cluster_of("cluster=local_slurm", *overrides)
        text = script(cluster, tmp_path, code).replace(sys.executable, str(say))
        env = {
            "PATH": f"{say.parent}:{os.environ['PATH']}",
            "SLURM_CPUS_PER_TASK": "3",
            "RANK": "7",  # of a job that this one was submitted from
            "OMP_NUM_THREADS": "99",
        }
        return subprocess.run(
            ["bash"], input=text, env=env, capture_output=True, text=True, check=False
        )

    return run


def test_each_rank_has_variables_of_its_own(
    batch: typing.Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    special = r"""a "b" `c` \\d \ & it"""
    done = batch(f"cluster.slurm.environment={{SPECIAL: '{special}', PLACE: /tmp/$SLURM_PROCID}}")
    code = tmp_path / "a folder" / "code"
    assert done.stdout.splitlines() == [
        "begun 3",
        f"{code}|{special}|3|/tmp/0||",
        f"{code}|{special}|3|/tmp/1||",
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_a_variable_that_is_not_set_ends_the_job(
    batch: typing.Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = batch("cluster.slurm.environment.PLACE=/tmp/$SLRUM_PROCID")
    assert done.returncode != 0
    assert "SLRUM_PROCID" in done.stderr


def test_a_line_of_the_setup_that_fails_ends_the_job_before_it_could_be_requeued(
    batch: typing.Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = batch("cluster.slurm.setup=['cd /no/such/folder']")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "/no/such/folder" in done.stderr


if __name__ == "__main__":
    for stem in SCRIPTS:
        (GOLDEN / f"{stem}.sbatch").write_text(rendered(stem))
