"""A cluster's profile as a job of Slurm: what submitit is told, and the script that comes of it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from launch.profile import sbatch_options
from llm_pretrain.config.cluster import ClusterConfig, ContainerConfig

_OF_ANOTHER_ARRAY = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
_OF_ANOTHER_STEP = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *('"${!SLURM_CPU_BIND@}"', '"${!SLURM_MEM_BIND@}"'),
)
"""What a job submitted from within another one brings along, and what would bind its ranks to that
one's cores, or take it for that one's ranks."""


def script(
    cluster: ClusterConfig,
    name: str,
    code: Path,
    folder: Path,
    task: Sequence[str],
    *,
    runs: int = 1,
    tries: int | None = None,
) -> str:
    """The text that sbatch is given for a job, or for an array of so many `runs`.

    `code`: the snapshot that it runs. `folder`: where it writes; its parent's parent is what ranks
    in a container see. `task`: what each rank's Python is told, such as ["-m", "launch.job", LIST].
    `tries`: starts without progress, after each of which but the last it is queued again. None: a
    check, which is never queued again, and in which each rank ends on its own.
    """
    slurm = cluster.slurm
    options: dict[str, Any] = {
        "job_name": name,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.devices_per_node,
        "array_parallelism": max(1, cluster.jobs),
        "stderr_to_stdout": True,
        "wckey": None,
        # Slurm's default is the partition's limit, submitit's five minutes.
        "time": None,
        "setup": _setup(cluster, code, folder, runs=runs, tries=tries),
        "srun_args": _srun(cluster, folder, together=tries is not None),
        "additional_parameters": {
            **sbatch_options(slurm),
            "requeue" if tries else "no-requeue": True,
            # Without "B:", so that it reaches the ranks and not the batch script. Submitit would
            # have one in any case.
            "signal": f"{slurm.signal}@{slurm.signal_seconds if tries else 1}",
        },
    }
    # Private: submitit makes the text only while it submits it, with a command of its own.
    return _make_sbatch_string(
        command=f"{_python(cluster)} -u {shlex.join(task)}",
        folder=folder,
        map_count=runs if runs > 1 else None,
        **options,
    )


def _python(cluster: ClusterConfig) -> str:
    """The command that a rank begins with, as shell. Its parts from the outside to the inside: the
    container, what is set there, the binding, Python."""
    container = cluster.slurm.container
    inside = sys.executable if container.kind == "none" else container.python
    outside = _apptainer(container)
    return " ".join(
        [
            *([shlex.join(outside)] if outside else []),
            'sh -c "$rank" rank',
            shlex.join([*cluster.slurm.bind, inside]),
        ]
    )


def _setup(
    cluster: ClusterConfig, code: Path, folder: Path, *, runs: int, tries: int | None
) -> list[str]:
    """What the batch script does before the ranks start."""
    slurm = cluster.slurm
    others = _OF_ANOTHER_STEP if runs > 1 else (*_OF_ANOTHER_STEP, *_OF_ANOTHER_ARRAY)
    lines = [f"unset {' '.join(others)}"]
    if sbatch_options(slurm).get("cpus-per-task"):
        lines.append("# Since Slurm 22.05 srun does not take it from sbatch.")
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    if slurm.container.kind == "apptainer":
        # Its own variable, since a module may have put the site's folders there.
        binds = ",".join(shlex.quote(mount) for mount in _mounts(slurm.container, folder))
        lines.append(f'export APPTAINER_BIND="${{APPTAINER_BIND:+$APPTAINER_BIND,}}"{binds}')
    if slurm.setup:
        lines += ["# One that fails ends the job, which then is not requeued.", "set -e"]
        lines += [*slurm.setup, "set +e"]
    lines += [
        "",
        "# Every rank begins with this, inside of its container.",
        "# shellcheck disable=SC2016",
        f"rank={shlex.quote(_rank(cluster, code))}",
    ]
    if tries:
        requeue = shlex.join(map(str, (code / "launch/requeue.sh", folder, tries)))
        lines += ["", "# shellcheck source=/dev/null", f". {requeue}"]
    return lines


def _rank(cluster: ClusterConfig, code: Path) -> str:
    """Shell that a rank runs its command with.

    Values are expanded here and not in the batch script, since they may differ between ranks, and
    inside of a container, since an image's own variables win over those from outside.
    """
    slurm = cluster.slurm
    lines = ["set -eu"]
    if slurm.container.kind != "none":
        # Else it is what the image says, and paths in a config may be relative.
        lines.append('cd "$SLURM_SUBMIT_DIR"')
    lines.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    # Else a checkout in which the job was submitted would come before the snapshot.
    lines.append("export PYTHONSAFEPATH=1")
    lines.append('export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"')
    lines += [f"export {n}={_expanded(v)}" for n, v in slurm.environment.items() if v is not None]
    return "\n".join([*lines, 'exec "$@"'])


def _expanded(value: str) -> str:
    r"""A word of shell in which nothing but $ has a meaning.

    >>> _expanded('AWS "Libfabric" $HOME')
    '"AWS \\"Libfabric\\" $HOME"'
    """
    for special in ("\\", '"', "`"):
        value = value.replace(special, f"\\{special}")
    return f'"{value}"'


def _srun(cluster: ClusterConfig, folder: Path, *, together: bool) -> list[str]:
    # One rank that ends with an error takes the others with it, so that nobody waits for it. After
    # one that ends well the rest have ten minutes, for what rank 0 may have to write or upload.
    flags = [f"--kill-on-bad-exit={int(together)}", "--wait=600", "--label"]
    container = cluster.slurm.container
    if container.kind == "edf":
        flags.append(f"--environment={container.image}")
    if container.kind == "pyxis":
        flags.append(f"--container-image={container.image}")
        flags.append(f"--container-mounts={','.join(_mounts(container, folder))}")
    return [*flags, *cluster.slurm.srun]


def _mounts(container: ContainerConfig, folder: Path) -> list[str]:
    """What a container sees of the outside: where the job is submitted, and the runs with their
    code and jobs, at the same places; and what was asked for."""
    own = dict.fromkeys([Path.cwd(), folder.parent.parent])
    return [*(f"{place}:{place}" for place in own), *container.mounts]


def _apptainer(container: ContainerConfig) -> list[str]:
    if container.kind != "apptainer":
        return []
    return ["apptainer", "exec", "--nv", str(container.image)]
