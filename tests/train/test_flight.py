"""Where dumps of hangs go, and which of them stay. What is in them: test_lost_rank.py."""

import os
from pathlib import Path

import pytest
import torch

from llm_pretrain.config.layout import Layout
from llm_pretrain.train import flight
from llm_pretrain.world import World

VARIABLES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> World:
    """A process on a GPU, as far as it need not be there."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return World(0, Layout(), torch.device("cuda"))


def test_only_the_newest_dumps_stay(tmp_path: Path) -> None:
    folder = tmp_path / "flight-recorder"
    flight.tidy(folder)
    for session in (2, 9, 10, 11):
        flight.place(folder, session).mkdir(parents=True)
        if session < 11:
            (flight.place(folder, session) / "rank-0000.json").touch()
    flight.tidy(folder)
    assert list(folder.iterdir()) == [folder / "session-10"]


def test_nothing_is_left_of_a_session_that_ends_well(tmp_path: Path, gpu: World) -> None:
    folder = tmp_path / "flight-recorder"
    with flight.armed(flight.place(folder, 1), gpu):
        assert flight.place(folder, 1).is_dir()
    flight.tidy(folder)
    assert not folder.exists()


def test_nccl_is_told_where_to_dump(tmp_path: Path, gpu: World) -> None:
    with flight.armed(tmp_path, gpu):
        assert os.environ[VARIABLES[0]] == str(tmp_path / "nccl_rank_")
    assert VARIABLES[0] not in os.environ


@pytest.mark.parametrize("name", VARIABLES)
def test_unless_the_environment_says_where(
    tmp_path: Path, gpu: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "/elsewhere/")
    with flight.armed(tmp_path / "none", gpu):
        assert {n: os.environ[n] for n in VARIABLES if n in os.environ} == {name: "/elsewhere/"}
    assert not (tmp_path / "none").exists()
