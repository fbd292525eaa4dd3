"""The cluster of the tests of a process, and its state at the start of each test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ranks.commands import Zygote
from tests.slurm.cluster import Cluster, unavailable
from tests.slurm.lab import Lab
from tests.support import tiny


@pytest.fixture(scope="session")
def slurm_here() -> None:
    """Skips, or fails where LLM_PRETRAIN_REQUIRE_SLURM=1, if no cluster can run on this machine."""
    reason = unavailable()
    if reason is not None:
        message = f"no Slurm: {reason}"
        if os.environ.get("LLM_PRETRAIN_REQUIRE_SLURM") == "1":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def running_cluster(
    slurm_here: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster for all tests of this process; `slurm` is what a test wants."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "c")
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(running_cluster: Cluster) -> Cluster:
    """A real Slurm cluster of four nodes, without jobs and with all nodes idle."""
    running_cluster.reset()
    return running_cluster


@pytest.fixture
def lab(slurm: Cluster, tmp_path: Path, corpus: Path, cache: Path) -> Lab:
    """Runs on the cluster."""
    return Lab(slurm, tmp_path, corpus, cache)


@pytest.fixture(scope="session")
def whole(
    zygote: Zygote, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The run that nobody disturbs, on ranks without Slurm: whole(ranks, *overrides). It is trained
    once, for all tests that ask for it."""
    place = tmp_path_factory.mktemp("whole")
    trained: dict[tuple[int | str, ...], Path] = {}

    def train(ranks: int, *overrides: str) -> Path:
        known = trained.setdefault((ranks, *overrides), place / f"run{len(trained)}")
        if not known.exists():
            zygote.train(ranks, *tiny(known, f"data.cache={cache}", *overrides))
        return known

    return train
