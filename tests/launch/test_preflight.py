"""Preflight's verdicts on made-up measurements."""

import dataclasses

import pytest

from launch.preflight import host, speeds
from launch.preflight.absence import Seen, absent, expand_hosts
from launch.preflight.between import bus_bandwidth, groups
from launch.preflight.evidence import Evidence, names_of
from launch.preflight.facts import Absent, Files, Finding, Host, Links, Rank
from launch.preflight.verdict import exclude, judge, summary
from llm_pretrain.config.cluster import HardwareConfig
from tests.launch.evidence import H100, PROFILE, evidence, ill, links, rank


def failures(found: Evidence) -> list[tuple[str, str | None, list[int]]]:
    """Check, node and ranks of what fails."""
    return [(f.check, f.node, f.ranks) for f in judge(found) if f.fails]


def excluded(found: Evidence) -> list[str]:
    return exclude(judge(found), found.nodes)


def test_nothing_is_found_where_all_is_well() -> None:
    found = evidence()
    assert judge(found) == []
    assert excluded(found) == []
    assert summary([], found.nodes) == "fit to train: 3 nodes"


@pytest.mark.parametrize(
    "change,check",
    [
        (rank(6, matmul=600.0), "matmul"),
        (ill(6, free=0.7), "memory"),
        (ill(6, memory=40.0), "memory"),
        (ill(6, uncorrected=2), "ecc"),
        (ill(6, remap=True), "ecc"),
        (ill(6, xids=[43, 79]), "xid"),
        (ill(6, slowdown=True), "clocks"),
        (rank(6, device="CPU", gpu=None), "gpu"),
        (rank(6, versions={**rank(6).versions, "torch": "2.11.0"}), "versions"),
        (rank(6, errors={"gpu": "CUDA error"}), "gpu"),
        (rank(6, device=None, gpu=None, matmul=None, errors={"gpu": "no CUDA"}), "gpu"),
    ],
)
def test_a_rank_that_is_ill(change: Rank, check: str) -> None:
    found = evidence(change)
    assert (check, "b", [6]) in failures(found)
    assert excluded(found) == ["b"]
    assert f"b ({check}" in summary(judge(found), found.nodes)


def test_what_a_program_did_wrong_is_no_ill_gpu() -> None:
    assert failures(evidence(ill(6, xids=[13, 31, 43, 45]))) == []


def test_what_is_not_readable_fails_nothing() -> None:
    unread = [
        ill(n, bus=None, uncorrected=None, remap=None, xids=None, clock=None, slowdown=None)
        for n in range(12)
    ]
    assert judge(evidence(*unread)) == []


def test_two_ranks_with_one_gpu() -> None:
    found = evidence(ill(5, uuid="uuid-4"))
    assert failures(found) == [("same gpu", "b", [4, 5])]
    assert "ranks 4-5 have the same GPU uuid-4" in judge(found)[0].text
    # The way that ranks were started, not the node.
    assert excluded(found) == []


def test_versions_without_a_majority_blame_nobody() -> None:
    old = [rank(n, versions={"torch": "2.11.0"}) for n in range(4)]
    new = [rank(n, versions={"torch": "2.13.0"}) for n in range(4, 8)]
    found = evidence(*old, *new, nodes=2)
    (finding,) = judge(found)
    assert finding.text == "torch differs: 2.11.0 on ranks 0-3; 2.13.0 on ranks 4-7"
    assert finding.fails
    assert excluded(found) == []


def test_what_every_node_lacks_excludes_none() -> None:
    slow = evidence(*(rank(n, matmul=400.0) for n in range(12)))
    assert {check for check, _, _ in failures(slow)} == {"matmul"}
    assert excluded(slow) == []
    some = evidence(*(rank(n, matmul=400.0) for n in range(6, 12)), nodes=5)
    assert excluded(some) == ["b", "c"]
    errors = evidence(*(ill(n, uncorrected=1) for n in range(12)))
    assert excluded(errors) == ["a", "b", "c"]


def test_a_lone_rank_is_judged_by_what_needs_no_comparison() -> None:
    alone = dataclasses.replace(rank(0), matmul=10.0)
    assert failures(Evidence([alone], {}, [], HardwareConfig())) == []
    found = Evidence([alone], {}, [], PROFILE)
    assert failures(found) == [("matmul", "a", [0])]


def test_another_device_than_the_profile_describes() -> None:
    other = [rank(n, device="NVIDIA H200", matmul=400.0) for n in range(12)]
    (note,) = judge(evidence(*other))
    assert not note.fails
    assert f"{H100}, this is NVIDIA H200" in note.text
    mixed = evidence(*(rank(n, device="NVIDIA H200") for n in range(8, 12)))
    assert failures(mixed) == [("versions", "c", [8, 9, 10, 11])]


@pytest.mark.parametrize(
    "allowed,has,outcome",
    [
        (["0-7", "8-15", "16-23", "24-31"], 32, None),
        # Not bound at all: worth knowing.
        (["0-31"] * 4, 32, False),
        (["0-15", "8-23", "16-23", "24-31"], 32, True),
        # As when srun gives one task for four ranks one core.
        (["0,32"] * 4, 64, True),
        # No other way.
        (["0-1"] * 4, 2, None),
    ],
)
def test_cores(allowed: list[str], has: int, outcome: bool | None) -> None:
    ranks = [rank(n, host=Host(cores, has)) for n, cores in enumerate(allowed)]
    found = [f.fails for f in judge(evidence(*ranks, nodes=1)) if f.check == "cores"]
    assert found == ([] if outcome is None else [outcome])


def test_memory_that_may_come_from_the_gpus() -> None:
    loose = rank(1, host=Host("8-15", 32, "default", "4,12,20,28", "never"))
    bound = rank(2, host=Host("16-23", 32, "bind:0-3", "4,12,20,28", "never"))
    (note,) = judge(evidence(loose, bound))
    assert (note.check, note.ranks, note.fails) == ("numa", [1], False)


@pytest.mark.parametrize(
    "files,word",
    [
        (Files("/scratch", 0.5, 10**9, None), "0.50 GB are free"),
        (Files("/scratch", 1000.0, 3, 2.0), "room for 3 more files"),
        (Files("/scratch", 1000.0, None, 0.1), "written at 0.1 GB/s, the median is 2"),
    ],
)
def test_files(files: Files, word: str) -> None:
    found = evidence(rank(4, files=files))
    assert failures(found) == [("files", "b", [4])]
    assert word in judge(found)[0].text
    assert excluded(found) == ["b"]


def test_a_slow_rank_is_found_once() -> None:
    # Below 90 % of the median, and below 75 % of the profile too.
    assert failures(evidence(rank(6, matmul=500.0))) == [("matmul", "b", [6])]
    assert failures(evidence(rank(6, matmul=640.0))) == []


def test_slow_links() -> None:
    # Of a node, its slowest rank counts.
    inside = {6: links(inside=200.0)}
    assert failures(evidence(exchanged=inside)) == [("inside", "b", [4, 5, 6, 7])]
    slow = {n: links(between=2.0) for n in range(12)}
    assert failures(evidence(exchanged=slow)) == [("between", None, [])]
    assert excluded(evidence(exchanged=slow)) == []
    assert failures(evidence(exchanged=slow, hardware=HardwareConfig())) == []


def test_the_network_that_the_profile_wants() -> None:
    tcp = {n: links(network="Socket") for n in range(12)}
    assert len(failures(evidence(exchanged=tcp))) == 12
    assert excluded(evidence(exchanged=tcp)) == []
    assert excluded(evidence(exchanged={n: tcp[n] for n in range(4)})) == ["a"]
    # NVIDIA's plugin calls itself so.
    assert failures(evidence(exchanged={n: links(network="IBext_v8") for n in range(12)})) == []
    # Without a wish, all must have the same.
    free = HardwareConfig()
    assert failures(evidence(exchanged={5: links(network="Socket")}, hardware=free)) == [
        ("network", "b", [5])
    ]


def test_a_rank_that_is_gone_explains_the_others_failures() -> None:
    broken = {n: links(between=None, errors={"between": "reset"}) for n in (1, 9)}
    gone = (Absent([5], "b", "between"),)
    found = evidence(exchanged=broken, gone=gone)
    assert failures(found) == [("answer", "b", [5])]
    assert excluded(found) == ["b"]
    assert "rank 5 did not answer; the last that it began was 'between'" in judge(found)[0].text
    assert {check for check, _, _ in failures(evidence(exchanged=broken))} == {"between"}


@pytest.mark.parametrize("count", range(3, 10))
def test_the_slow_node_is_the_one_that_the_pairs_blame(count: int) -> None:
    for slow in range(count):
        speed = [10.0 if node == slow else 45.0 for node in range(count)]
        nodes = [f"n{node}" for node in range(count) for _ in range(2)]
        pairs: dict[int, list[float]] = {number: [] for number in range(2 * count)}
        for name, sets in groups(nodes).items():
            for members in sets if name.startswith("pair") else ():
                first, second = members
                assert first % 2 == second % 2
                for number in members:
                    pairs[number].append(min(speed[first // 2], speed[second // 2]))
        assert all(len(rates) == 2 for rates in pairs.values())
        ranks = [Rank(n, node, "CPU") for n, node in enumerate(nodes)]
        found = Evidence(ranks, {n: Links(pairs=p) for n, p in pairs.items()}, [], PROFILE)
        assert [finding.node for finding in speeds.pairs(found)] == [f"n{slow}"]


def test_groups_of_uneven_nodes() -> None:
    assert groups(["a"]) == {}
    assert groups(["a", "a"]) == {"inside": [[0, 1]]}
    # Ranks dealt out in turn, and a node with one more.
    assert groups(["a", "b", "a", "b", "a"]) == {
        "inside": [[0, 2, 4], [1, 3]],
        "between": [[0, 1], [2, 3]],
    }


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_bus_bandwidth_counts_what_a_ring_sends(ranks: int) -> None:
    chunk, sent = 10**6, 0
    # Each rank passes a part on in every round: once around to add, once more to hand out.
    for _ in range(2):
        for _ in range(ranks - 1):
            sent += chunk
    assert bus_bandwidth(ranks, chunk * ranks, 0.5) == pytest.approx(sent / 0.5 / 1e9)


def test_who_is_absent() -> None:
    seen = {0: Seen("a", 2, "links"), 1: Seen("a", 2, "matmul"), 2: Seen("b", 2, "matmul")}
    assert absent(4, {0, 1, 2, 3}, {**seen, 3: Seen("b", 2, "matmul")}) == []
    # Rank 3 never began: it belongs to the node with one rank too few.
    assert absent(4, {0, 1, 2}, seen) == [Absent([3], "b", None)]
    assert absent(4, {0}, seen) == [
        Absent([1], "a", "matmul"),
        Absent([2], "b", "matmul"),
        Absent([3], "b", None),
    ]
    full = {0: Seen("a", 2, "matmul"), 1: Seen("a", 2, "matmul")}
    assert absent(4, {0, 1}, full, "a,n[07-08]") == [
        Absent([2, 3], "n07", None),
        Absent([2, 3], "n08", None),
    ]
    assert absent(4, {0, 1}, full) == [Absent([2, 3], None, None)]


def test_lists() -> None:
    assert expand_hosts("nid[001-003,010],login1") == [
        "nid001",
        "nid002",
        "nid003",
        "nid010",
        "login1",
    ]
    assert expand_hosts("r[1-2]n[8-9]") == ["r1n8", "r1n9", "r2n8", "r2n9"]
    assert host.expand("0-2,8") == {0, 1, 2, 8}
    assert names_of([5, 0, 1, 2]) == "ranks 0-2, 5"
    assert names_of([3]) == "rank 3"


def test_what_every_node_lacks_is_said_once() -> None:
    tcp = {n: links(network="Socket", between=1.0) for n in range(12)}
    found = evidence(rank(4, matmul=9.0), exchanged=tcp)
    line = summary(judge(found), found.nodes)
    assert line == ("not fit to train: b (matmul), no single node (between), every node (network)")


def test_many_findings_in_one_line() -> None:
    many = [Finding("matmul", f"n{i}", [i], "slow") for i in range(20)]
    nodes = [f"n{i}" for i in range(1000)]
    line = summary(many, nodes)
    assert line.startswith("not fit to train: n0 (matmul), n1 (matmul)")
    assert line.endswith("n15 (matmul) and 4 more")
    assert exclude(many, nodes) == nodes[:20]
