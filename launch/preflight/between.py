"""All-reduces inside a node, between nodes, and in pairs of nodes, which tell whose link lags."""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from launch.preflight.facts import Links
from launch.preflight.rank import Checks

BYTES_GPU, BYTES_CPU = 2**30, 2**24
"""Of an all-reduce: large enough for its bandwidth, not its latency, to count."""
TIMED_SECONDS = 0.5
MOST = 20
"""All-reduces of one measurement, at most."""
GROUP_SECONDS = 20.0
"""For one measurement, the connections that it needs included."""

_GIVE_UP = timedelta(minutes=10)
"""After the preflight's end: NCCL would end the process, and its verdict with it."""
_NETWORK = re.compile(r"NCCL INFO (?:Using network (.+)|Assigned NET plugin (.+) to comm)")


def groups(nodes: Sequence[str]) -> dict[str, list[list[int]]]:
    """The groups of ranks that all-reduce at the same time, by measurement, in their order.

    `nodes`: of each rank. inside: the ranks of a node. between: one rank of each node, its first,
    its second, and so on. pair 0, 1, 2: the same of two nodes that are neighbours in a ring, so
    that each node meets two others and one that is slow with both is slow itself.
    """
    members: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        members.setdefault(node, []).append(rank)
    ring = list(members)
    found = {"inside": list(members.values()), "between": _rails(members, ring)}
    count = len(ring)
    if count > 2:
        for turn in range(2):
            pairs = [ring[i : i + 2] for i in range(turn, count - 1, 2)]
            if turn == 1 and count % 2 == 0:
                pairs.append([ring[-1], ring[0]])
            found[f"pair {turn}"] = [rail for pair in pairs for rail in _rails(members, pair)]
        if count % 2:
            found["pair 2"] = _rails(members, [ring[-1], ring[0]])
    kept = {name: [g for g in sets if len(g) > 1] for name, sets in found.items()}
    return {name: sets for name, sets in kept.items() if sets}


def measure(
    checks: Checks, rank: int, nodes: Sequence[str], device: torch.device, store: Store
) -> Links:
    """Join the other ranks and measure; every rank calls this with the same `nodes`."""
    rates: dict[str, float] = {}
    with _nccl_log() as log:
        for name, sets in groups(nodes).items():
            mine = next((ranks for ranks in sets if rank in ranks), None)
            if mine is None:
                continue
            meeting = PrefixStore(f"{name} of {mine[0]}", store)
            join = partial(_rate, meeting, mine.index(rank), len(mine), device)
            rate = checks.run(name, join, GROUP_SECONDS)
            if rate is None:
                # One rank of the group is ill: the others would wait for it again.
                break
            rates[name] = rate
        network = network_in(log.read_text(errors="replace")) if device.type == "cuda" else None
    pairs = [rate for name, rate in rates.items() if name.startswith("pair")]
    return Links(rates.get("inside"), rates.get("between"), pairs, network, checks.errors)


def bus_bandwidth(ranks: int, size: int, seconds: float) -> float:
    """GB/s that each rank sends in an all-reduce of `size` bytes: 2 (n-1)/n of them, at least."""
    return 2 * (ranks - 1) / ranks * size / seconds / 1e9


def network_in(log: str) -> str | None:
    """The network that NCCL's log names; None when it names none."""
    match = _NETWORK.search(log)
    return (match[1] or match[2]).strip() if match else None


def _rails(members: dict[str, list[int]], nodes: Sequence[str]) -> list[list[int]]:
    """The first ranks of these nodes, their second ones, and so on."""
    longest = max(len(members[node]) for node in nodes)
    return [
        sorted(members[node][place] for node in nodes if place < len(members[node]))
        for place in range(longest)
    ]


def _rate(store: Store, place: int, ranks: int, device: torch.device) -> float:
    """Bus bandwidth of all-reduces among so many ranks, of which this is one, GB/s.

    They are a world of their own for this: a group inside of a larger one needs all of its ranks.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=place, world_size=ranks, timeout=_GIVE_UP)
    size = BYTES_GPU if on_gpu else BYTES_CPU
    tensor = torch.full((size // 4,), place + 1.0, device=device)
    dist.all_reduce(tensor)
    expected = ranks * (ranks + 1) / 2
    low, high = (float(end) for end in tensor.aminmax())
    if (low, high) != (expected, expected):
        raise ArithmeticError(f"a sum of {expected:g} came out as {low:g} to {high:g}")
    # Sums of zeros stay zeros, however often.
    tensor.zero_()
    first = torch.tensor(_timed(tensor, 1), device=device)
    # All must repeat it equally often.
    dist.all_reduce(first, dist.ReduceOp.MAX)
    count = min(MOST, max(1, int(TIMED_SECONDS / float(first))))
    rate = bus_bandwidth(ranks, size, _timed(tensor, count) / count)
    dist.destroy_process_group()
    return rate


def _timed(tensor: torch.Tensor, count: int) -> float:
    """Seconds that so many all-reduces take."""
    began = time.perf_counter()
    for _ in range(count):
        dist.all_reduce(tensor)
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter() - began


@contextmanager
def _nccl_log() -> Iterator[Path]:
    """Let NCCL write to a file what it chooses; it says so nowhere else."""
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        log = Path(folder) / "nccl.log"
        log.touch()
        os.environ |= {
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,NET",
            "NCCL_DEBUG_FILE": str(log),
        }
        yield log
