"""Rules on what ranks and nodes are like: devices, memory, cores, files, software."""

from collections import Counter
from collections.abc import Iterator

from launch.preflight.evidence import Evidence, names_of, odd, outliers
from launch.preflight.facts import Finding, Gpu, Rank
from launch.preflight.host import MIN_FREE, expand

FREE_SHARE = 0.9
"""Of a GPU's memory; CUDA itself takes less than 2 %, a process left behind much more."""
MEMORY_SHARE = 0.97
"""Of the profile's memory; drivers reserve a little more or less."""
WRITE_OF_MEDIAN = 0.25
"""Other jobs share the file system, and its cache flatters."""
MIN_INODES = 1000
"""Files that a run's first checkpoints and logs may be."""
FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
"""By NVIDIA's catalog: uncorrectable memory errors, failed row remapping, NVLink, a GPU that left
the bus or whose own processor hangs. Those that a program's mistakes cause are not among them."""

_UNKNOWN = "unknown device"


def absent(evidence: Evidence) -> Iterator[Finding]:
    """Ranks that did not answer in time."""
    for one in evidence.absent:
        last = f"the last that it began was '{one.last}'" if one.last else "it never began"
        yield Finding(
            "answer", one.node, one.ranks, f"{names_of(one.ranks)} did not answer; {last}"
        )


def errors(evidence: Evidence) -> Iterator[Finding]:
    """Checks that raised or did not end."""
    for rank in evidence.ranks:
        for check, reason in rank.errors.items():
            text = f"rank {rank.rank}: {reason}"
            yield Finding(check, rank.node, [rank.rank], text, blame="unless all")
    nodes = {rank.rank: rank.node for rank in evidence.ranks}
    for number, links in evidence.links.items():
        for check, text in links.errors.items():
            # When a rank is gone, the others' failures are its own.
            yield Finding(
                check,
                nodes[number],
                [number],
                f"rank {number}: all-reduce: {text}",
                fails=not evidence.absent,
                blame="unless all",
            )


def devices(evidence: Evidence) -> Iterator[Finding]:
    """Ranks without the GPU that the profile promises."""
    expected = evidence.hardware.device
    names = Counter(rank.device for rank in evidence.ranks if rank.device)
    for rank in evidence.ranks:
        if rank.device == "CPU" and expected not in (_UNKNOWN, "CPU"):
            text = f"no GPU; the profile promises {expected}"
            yield Finding("gpu", rank.node, [rank.rank], text, blame="unless all")
    if len(names) == 1 and expected not in (_UNKNOWN, "CPU", *names):
        text = (
            f"the profile has numbers for {expected}, this is {next(iter(names))}: rates are "
            "compared among ranks only"
        )
        yield Finding("gpu", None, [], text, fails=False)


def same_gpu(evidence: Evidence) -> Iterator[Finding]:
    """Ranks that compute on one GPU."""
    owners: dict[str, list[Rank]] = {}
    for rank in evidence.ranks:
        if rank.gpu:
            owners.setdefault(rank.gpu.uuid, []).append(rank)
    for uuid, ranks in owners.items():
        if len(ranks) > 1:
            numbers = [rank.rank for rank in ranks]
            text = f"{names_of(numbers)} have the same GPU {uuid}; bind one to each task"
            yield Finding("same gpu", ranks[0].node, numbers, text, blame="setup")


def health(evidence: Evidence) -> Iterator[Finding]:
    """GPUs that report errors, or that slow themselves down."""
    for rank in evidence.ranks:
        if rank.gpu:
            for check, text in _ills(rank.gpu):
                yield Finding(check, rank.node, [rank.rank], f"rank {rank.rank}: {text}")


def _ills(gpu: Gpu) -> Iterator[tuple[str, str]]:
    if gpu.uncorrected:
        yield "ecc", f"{gpu.uncorrected} uncorrectable memory errors since the driver was loaded"
    if gpu.remap:
        yield "ecc", "a row of memory waits for a reset to be replaced, or could not be"
    fatal = sorted(FATAL_XIDS.intersection(gpu.xids or ()))
    if fatal:
        yield "xid", f"Xid {', '.join(map(str, fatal))} in the kernel's log of the last day"
    if gpu.slowdown:
        yield "clocks", f"its hardware slows it down ({gpu.clock} of {gpu.clock_limit} MHz)"


def memory(evidence: Evidence) -> Iterator[Finding]:
    """GPUs with less memory, or less of it free, than they should have."""
    promised = evidence.hardware.memory if evidence.profiled else None
    for rank in evidence.ranks:
        gpu = rank.gpu
        if gpu and gpu.free < FREE_SHARE:
            text = f"rank {rank.rank}: {gpu.free:.0%} of its memory is free, others hold the rest"
            yield Finding("memory", rank.node, [rank.rank], text)
        if gpu and promised and gpu.memory < MEMORY_SHARE * promised:
            text = f"rank {rank.rank}: {gpu.memory:.1f} GiB, the profile promises {promised:g}"
            yield Finding("memory", rank.node, [rank.rank], text, blame="unless all")


def cores(evidence: Evidence) -> Iterator[Finding]:
    """Ranks of a node that share cores without need."""
    for node, ranks in evidence.by_node().items():
        hosts = {rank.rank: rank.host for rank in ranks if rank.host}
        sets = {number: expand(one.cores) for number, one in hosts.items()}
        together = set().union(*sets.values()) if sets else set()
        has = max((one.node_cores for one in hosts.values()), default=0)
        if len(sets) < 2 or sum(map(len, sets.values())) == len(together) or has < len(sets):
            continue
        numbers = sorted(sets)
        if len(together) < len(sets):
            text = f"{names_of(numbers)} share {len(together)} of {has} cores; give each its own"
            yield Finding("cores", node, numbers, text, blame="setup")
        elif len({frozenset(cores) for cores in sets.values()}) == 1:
            text = f"{names_of(numbers)} may all run on the same {len(together)} cores: not bound"
            yield Finding("cores", node, numbers, text, fails=False, blame="setup")
        else:
            text = f"cores of {names_of(numbers)} overlap; give each its own"
            yield Finding("cores", node, numbers, text, blame="setup")


def memory_policy(evidence: Evidence) -> Iterator[Finding]:
    """Where memory comes from: the GPUs' own NUMA nodes, huge pages."""
    for node, ranks in evidence.by_node().items():
        loose = [r.rank for r in ranks if r.host and r.host.coreless and r.host.policy == "default"]
        if loose:
            text = (
                f"memory of {names_of(loose)} may come from the GPUs' own; bind it to the NUMA "
                "nodes that have cores (numactl --membind)"
            )
            yield Finding("numa", node, loose, text, fails=False, blame="setup")
    pages = {r.rank: r.host.huge_pages for r in evidence.ranks if r.host and r.host.huge_pages}
    yield from odd("huge pages", evidence, {"transparent huge pages": pages}, fails=False)


def files(evidence: Evidence) -> Iterator[Finding]:
    """Folders that are full or far slower than those of other nodes."""
    found = {rank.node: (rank.rank, rank.files) for rank in evidence.ranks if rank.files}
    for node, (number, files) in found.items():
        if files.free < MIN_FREE:
            text = f"{files.folder}: {files.free:.2f} GB are free, fewer than {MIN_FREE:g}"
            yield Finding("files", node, [number], text, blame="unless all")
        if files.inodes is not None and files.inodes < MIN_INODES:
            text = f"{files.folder}: has room for {files.inodes} more files only"
            yield Finding("files", node, [number], text, blame="unless all")
    rates = {node: one.rate for node, (_, one) in found.items() if one.rate is not None}
    middle, slow = outliers(rates, WRITE_OF_MEDIAN)
    for node in slow:
        number, files = found[node]
        text = f"{files.folder}: written at {rates[node]:.3g} GB/s, the median is {middle:.3g}"
        yield Finding("files", node, [number], text)


def versions(evidence: Evidence) -> Iterator[Finding]:
    """Software or devices that are not the same on all ranks."""
    names = dict.fromkeys(name for rank in evidence.ranks for name in rank.versions)
    values = {
        name: {r.rank: r.versions.get(name, "none") for r in evidence.ranks if r.versions}
        for name in names
    }
    values["device"] = {rank.rank: rank.device for rank in evidence.ranks if rank.device}
    yield from odd("versions", evidence, values)
