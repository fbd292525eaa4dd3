"""The part of the schema that says where runs are executed and what is there."""

from dataclasses import field
from typing import Annotated

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
    file_system: PositiveFloat | None = None
    """GB/s at which a large job writes a checkpoint, all nodes together."""
    file_system_per_rank: PositiveFloat | None = None
    """GB/s at which one rank writes its part, checksums included; what bounds a small job."""
    sources: list[str] = field(default_factory=list)
    """Where the numbers are from."""


@dataclass(config=RULES)
class ClusterConfig:
    """Where runs are executed."""

    name: str = "local"
    """local: on this machine. Others name a profile, such as alps_clariden."""
    jobs: Annotated[int, Field(ge=0)] = 1
    """Branches trained at the same time by `branch apply`; 1: one after the other; 0: only make
    their directories, for you to start each on as many ranks as you like."""
    nodes: Positive = 1
    """Nodes of a run."""
    devices_per_node: Positive = 1
    """Devices of a node, each with a rank of its own. Neighbouring ranks share a node."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
