"""What preflight measures and finds, as ranks send it and as preflight.json holds it."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch and nvidia-smi describe it. None: not readable."""

    uuid: str
    memory: float
    """GiB."""
    free: float
    """Share of it that nobody uses."""
    bus: str | None = None
    """PCI address."""
    uncorrected: int | None = None
    """ECC errors since the driver was loaded that could not be corrected."""
    remap: bool | None = None
    """Whether a row of its memory waits for a reset to be replaced, or could not be replaced."""
    xids: list[int] | None = None
    """Errors of the last day in the kernel's log."""
    clock: int | None = None
    """MHz of its processors while it multiplies matrices."""
    clock_limit: int | None = None
    """MHz that they could have."""
    slowdown: bool | None = None
    """Whether its hardware slows it down: heat, or the power supply."""


@dataclass(frozen=True)
class Host:
    """What a process may use of its node."""

    cores: str
    """Cores it may run on, such as "0-71"."""
    node_cores: int
    """Cores that the node has."""
    policy: str | None = None
    """Where its memory comes from, as the kernel writes it: "default", "bind:0-3"."""
    coreless: str = ""
    """NUMA nodes without cores; on Grace Hopper these are the GPUs' memory."""
    huge_pages: str | None = None
    """always, madvise or never: when the kernel gives 2 MB pages to programs by itself."""


@dataclass(frozen=True)
class Files:
    """A folder, as one process of the node sees it."""

    folder: str
    free: float
    """GB."""
    inodes: int | None = None
    """Files that it has room for; None where the file system does not count them."""
    rate: float | None = None
    """GB/s written and synced. None: too little room to try."""


@dataclass(frozen=True)
class Rank:
    """What one process found by itself."""

    rank: int
    node: str
    device: str | None = None
    """Name of its device; None: it has none."""
    host: Host | None = None
    gpu: Gpu | None = None
    matmul: float | None = None
    """TFLOP/s sustained in large matrix products."""
    files: Files | None = None
    """Of one process on each node."""
    versions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """Checks that raised or did not end, and why."""


@dataclass(frozen=True)
class Links:
    """What one process found together with others: bus bandwidths of all-reduces, GB/s."""

    inside: float | None = None
    """Among the ranks of its node."""
    between: float | None = None
    """Among the ranks of its place on all nodes, while the other places do the same."""
    pairs: list[float] = field(default_factory=list)
    """With its place on each of two neighbouring nodes."""
    network: str | None = None
    """What NCCL says that it uses between nodes."""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Absent:
    """Ranks that did not answer in time."""

    ranks: list[int]
    node: str | None
    """None: they never said where they are."""
    last: str | None
    """The check that they began last; None: they never began."""


@dataclass(frozen=True)
class Finding:
    """Something wrong, or worth knowing, on a node."""

    check: str
    node: str | None
    """None: no single node."""
    ranks: list[int]
    text: str
    fails: bool = True
    """False: training works all the same."""
    blame: Literal["node", "unless all", "setup"] = "node"
    """Whether another node would help: yes; not when all nodes of several have it; no."""
