"""What must hold of a cluster's profile before Slurm is asked for anything."""

import os
import re

from llm_pretrain.config.cluster import ClusterConfig, ContainerConfig, SlurmConfig
from llm_pretrain.errors import UserError

_OURS = {
    "nodes": "; set cluster.nodes",
    "ntasks": "; set cluster.nodes and cluster.devices_per_node",
    "ntasks-per-node": "; set cluster.devices_per_node",
    "array": "; set cluster.jobs",
    "signal": "; set cluster.slurm.signal and cluster.slurm.signal_seconds",
    "requeue": "; set cluster.slurm.tries",
    "no-requeue": "; set cluster.slurm.tries",
    "export": "; set cluster.slurm.environment",
    "job-name": "",
    "chdir": "",
    "open-mode": "",
    "output": "",
    "error": "",
    "wrap": "",
}
"""Options of sbatch that other fields decide, or that nothing may change."""

_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?"
    r"|(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+))"
)
"""Slurm's ways to write a duration, but for minutes alone."""


def sbatch_options(slurm: SlurmConfig) -> dict[str, str | int | bool]:
    """The options of sbatch by the names that Slurm has for them, without those taken back."""
    # Both spellings name the same option, of which the later value counts.
    named = {name.replace("_", "-"): value for name, value in slurm.sbatch.items()}
    return {name: v for name, v in named.items() if v is not None and v is not False}


def check_cluster(cluster: ClusterConfig) -> None:
    """Raise UserError when a profile contradicts itself, or names what is not there."""
    slurm = cluster.slurm
    for name, value in slurm.sbatch.items():
        hint = _OURS.get(name.replace("_", "-"))
        if hint is not None:
            raise UserError(f"cluster.slurm.sbatch.{name}: is not free to choose{hint}")
        if "\n" in str(value):
            raise UserError(f"cluster.slurm.sbatch.{name}: {value!r} has more than one line")
    for name in slurm.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"cluster.slurm.environment.{name}: no name of a variable")
    _check_time(slurm)
    _check_gpus(cluster)
    _check_container(slurm.container)


def time_limit(slurm: SlurmConfig) -> int | None:
    """Seconds that a job may run; None when the partition decides. Raises UserError."""
    text = sbatch_options(slurm).get("time")
    if text is None or str(text).upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = _TIME.fullmatch(str(text))
    if match is None:
        # YAML reads 12:00:00 as a number of its own, to the base of 60.
        raise UserError(
            f"cluster.slurm.sbatch.time: {text!r} is no time limit; write hours:minutes:seconds "
            'or days-hours, in quotes where it stands in a file, such as "12:00:00"'
        )
    part = {name: int(digits or 0) for name, digits in match.groupdict().items()}
    hours = part["h"] + part["hours"] + 24 * part["days"]
    return (hours * 60 + part["m"] + part["minutes"]) * 60 + part["s"] + part["seconds"]


def _check_time(slurm: SlurmConfig) -> None:
    limit = time_limit(slurm)
    if limit is not None and limit <= slurm.signal_seconds:
        raise UserError(
            f"cluster.slurm.signal_seconds: {slurm.signal_seconds} s before the end is no time "
            f"within a limit of {limit} s (cluster.slurm.sbatch.time); the run would be stopped "
            "before it begins"
        )


def _check_gpus(cluster: ClusterConfig) -> None:
    options = sbatch_options(cluster.slurm)
    for name, pattern in (
        ("gpus-per-node", r"(?:[a-z]\w*:)?(\d+)"),
        ("gres", r"(?:.*,)?gpu:(?:[a-z]\w*:)?(\d+)(?:,.*)?"),
    ):
        match = re.fullmatch(pattern, str(options.get(name, "")))
        if match and int(match[1]) < cluster.devices_per_node:
            raise UserError(
                f"cluster.devices_per_node: {cluster.devices_per_node} ranks on a node, but "
                f"cluster.slurm.sbatch.{name}={options[name]} asks for fewer GPUs"
            )


def _check_container(container: ContainerConfig) -> None:
    if container.kind == "none":
        return
    image = container.image
    if image is None:
        raise UserError(
            f"cluster.slurm.container.image: missing; kind={container.kind} needs one, or set "
            "cluster.slurm.container.kind=none"
        )
    # Else it is a name that the site knows, or an image that a registry has.
    is_file = {
        "edf": "/" in image or image.endswith(".toml"),
        "pyxis": image.startswith(("/", ".")) or image.endswith(".sqsh"),
        "apptainer": "://" not in image,
    }
    if is_file[container.kind] and not os.access(image, os.R_OK):
        raise UserError(f"cluster.slurm.container.image: '{image}' cannot be read")
