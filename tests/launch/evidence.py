"""Made-up measurements of nodes, all well but for what a test changes."""

import dataclasses
from typing import Any

from launch.preflight.evidence import Evidence
from launch.preflight.facts import Absent, Files, Gpu, Host, Links, Rank
from llm_pretrain.config.cluster import HardwareConfig

H100 = "NVIDIA H100 80GB HBM3"
PROFILE = HardwareConfig(
    device=H100, memory=79.6, matmul=780.0, inside_node=370.0, between_nodes=47.0, network="IB"
)


def rank(number: int, **other: Any) -> Rank:
    """One of four ranks on a node named a, b, ...; all is well but for what `other` says."""
    node = chr(ord("a") + number // 4)
    gpu = Gpu(f"uuid-{number}", 79.6, 0.99, "00000000:04:00.0", 0, False, [], 1900, 1980, False)
    place = Host(f"{8 * (number % 4)}-{8 * (number % 4) + 7}", 32, "default", "", "never")
    versions = {"python": "3.12.3", "torch": "2.13.0", "driver_version": "580.1"}
    files = Files("/scratch", 1000.0, 10**9, 2.0) if number % 4 == 0 else None
    healthy = Rank(number, node, H100, place, gpu, 700.0 + number, files, versions)
    return dataclasses.replace(healthy, **other)


def ill(number: int, **other: Any) -> Rank:
    """The same with another GPU."""
    one = rank(number)
    assert one.gpu
    return dataclasses.replace(one, gpu=dataclasses.replace(one.gpu, **other))


def links(**other: Any) -> Links:
    """All is well but for what `other` says."""
    well = Links(inside=350.0, between=45.0, pairs=[45.0, 46.0], network="IB")
    return dataclasses.replace(well, **other)


def evidence(
    *changed: Rank,
    nodes: int = 3,
    hardware: HardwareConfig = PROFILE,
    exchanged: dict[int, Links] | None = None,
    gone: tuple[Absent, ...] = (),
) -> Evidence:
    """An allocation in which only these ranks are other than they should be."""
    others = {one.rank: one for one in changed}
    ranks = [others.get(number, rank(number)) for number in range(4 * nodes)]
    ranks = [one for one in ranks if all(one.rank not in lost.ranks for lost in gone)]
    known = {one.rank: links() for one in ranks} | (exchanged or {})
    return Evidence(ranks, known, gone, hardware)
