"""The part of the schema that says where runs are executed and what is there."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES, Positive, PositiveFloat


@dataclass(config=RULES)
class HardwareConfig:
    """What one device of a cluster can do, for `llm-pretrain estimate`. Null: not known; what needs
    it is then not estimated. GiB are 2^30 bytes, GB/s 10^9 bytes a second in one direction."""

    device: str = "unknown device"
    """Name, as torch.cuda.get_device_name() gives it."""
    memory: PositiveFloat | None = None
    """GiB of a device."""
    host_memory: PositiveFloat | None = None
    """GiB that a job may use on a node, divided by the node's devices."""
    peak: PositiveFloat | None = None
    """Dense bf16 TFLOP/s of the datasheet, the denominator of MFU."""
    matmul: PositiveFloat | None = None
    """Dense bf16 TFLOP/s that large matrix products reach."""
    attention: PositiveFloat | None = None
    """bf16 TFLOP/s that causal attention reaches; scores that the mask leaves out do not count."""
    memory_bandwidth: PositiveFloat | None = None
    """GB/s between a device and its memory, which bound all that is no matrix product."""
    inside_node: PositiveFloat | None = None
    """GB/s of collectives among the devices of a node, each device: NCCL's bus bandwidth."""
    between_nodes: PositiveFloat | None = None
    """GB/s out of a node divided by its devices, as collectives reach it."""
    network: str | None = None
    """How the name begins that NCCL must give its network, such as "AWS Libfabric" or "IB", for
    `llm-pretrain preflight`: NCCL falls back to TCP without an error."""
    file_system: PositiveFloat | None = None
    """GB/s at which a large job writes a checkpoint, all nodes together."""
    file_system_per_rank: PositiveFloat | None = None
    """GB/s at which one rank writes its part, checksums included; what bounds a small job."""
    sources: list[str] = field(default_factory=list)
    """Where the numbers are from."""


@dataclass(config=RULES)
class ContainerConfig:
    """What the ranks of a job run inside of. The batch script itself stays outside, where Slurm's
    commands are."""

    kind: Literal["none", "edf", "pyxis", "apptainer"] = "none"
    """edf: the container engine of CSCS, `srun --environment`. pyxis: enroot by NVIDIA's plugin,
    `srun --container-image`. apptainer: `apptainer exec --nv`."""
    image: str | None = None
    """edf: name or path of an environment definition file. pyxis: an image file or
    registry#name:tag. apptainer: a .sif file."""
    mounts: list[str] = field(default_factory=list)
    """pyxis, apptainer: "outside:inside", beside the folder of the runs and the one in which the
    job is submitted, which are always there. An EDF names its own, those two among them."""
    python: str = "python"
    """Python inside; it needs this package's dependencies."""


@dataclass(config=RULES)
class SlurmConfig:
    """How a job is asked for. Sites differ, so what is theirs is free-form."""

    sbatch: dict[str, str | int | bool | None] = field(default_factory=dict)
    """Options of sbatch by their long names, such as {partition: normal, time: "12:00:00"}; the
    quotes matter in YAML. True: an option without value. Null: leave out what the profile sets."""
    srun: list[str] = field(default_factory=list)
    """Options of the srun that starts the ranks, such as ["--mpi=pmix"]."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the ranks start, outside of the container: modules, limits. One that
    fails ends the job."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables of the ranks. $NAME is expanded by each rank in its container, where $SLURM_PROCID
    and $SLURM_LOCALID are its own; one that is not set ends the job. Null: leave out what the
    profile sets."""
    bind: list[str] = field(default_factory=list)
    """Command in front of each rank's Python, inside of the container, such as ["numactl",
    "--membind=0-3"]."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    signal: Literal["USR1", "USR2", "TERM"] = "USR2"
    """What Slurm sends before the time limit: the run saves and continues in its next turn."""
    signal_seconds: Positive = 300
    """How long before the time limit; a step, an evaluation and a save must fit."""
    tries: Positive = 3
    """Starts in a row without a step of progress after which a run is given up."""


@dataclass(config=RULES)
class ClusterConfig:
    """Where runs are executed."""

    name: str = "local"
    """local: on this machine. Others name a profile, such as alps_clariden."""
    launcher: Literal["here", "slurm"] = "here"
    """here: the process that was asked, or torchrun's. slurm: jobs, submitted through submitit; the
    command returns with their numbers."""
    jobs: Annotated[int, Field(ge=0)] = 1
    """Runs of one command that are trained at the same time. 1: one after the other; 0: `branch
    apply` only makes their directories, for you to start each on as many ranks as you like."""
    nodes: Positive = 1
    """Nodes of a run."""
    devices_per_node: Positive = 1
    """Devices of a node, each with a rank of its own. Neighbouring ranks share a node."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
