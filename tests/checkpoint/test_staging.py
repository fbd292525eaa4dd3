"""Staged pieces are the state at that moment, in memory that is used again."""

import gc
import weakref
from typing import Any

import pytest
import torch

from llm_pretrain.checkpoint import staging
from llm_pretrain.checkpoint.staging import Piece, Stager


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 256 bytes, four to a slab."""
    monkeypatch.setattr(staging, "PIECE_BYTES", 256)
    monkeypatch.setattr(staging, "_SLAB_BYTES", 1024)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(pieces: tuple[Piece, ...]) -> torch.Tensor:
    """The tensor that pieces of whole rows make."""
    assert all(piece.offsets[1:] == (0,) * (len(piece.shape) - 1) for piece in pieces)
    ordered = sorted(pieces, key=lambda piece: piece.offsets)
    data = [piece.data for piece in ordered]
    return torch.cat(data) if pieces[0].shape else data[0]


KINDS = {
    "many pieces": random(100, 7),
    "rows larger than a piece": random(3, 500),
    "one dimension": random(1000),
    "three dimensions": random(9, 5, 4),
    "scalar": torch.tensor(3.5),
    "bfloat16": random(50, 7).bfloat16(),
    "bytes": torch.arange(999, dtype=torch.int64).to(torch.uint8),
    "transposed": random(31, 64).T,
    "part of a larger one": random(100, 9)[20:50, 3:5],
    "a parameter": torch.nn.Parameter(random(20, 20)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_the_tensor(kind: str) -> None:
    live = KINDS[kind]
    pieces = Stager(0, 1).copy({"a": {"b": live}})["a"]["b"]
    assert torch.equal(whole(pieces), live)
    for piece in pieces:
        assert piece.data.dtype == live.dtype
        assert piece.shape == live.shape
        assert len(piece.data) == 1 or piece.data.nbytes <= 256 if live.ndim else True
        # torch.save writes the whole storage.
        assert piece.data.untyped_storage().nbytes() == piece.data.nbytes
        assert piece.data.data_ptr() % 16 == 0


def test_all_kinds_in_one_state_do_not_overlap() -> None:
    staged = Stager(0, 1).copy({"a": KINDS})["a"]
    assert all(torch.equal(whole(staged[kind]), KINDS[kind]) for kind in KINDS)


def test_training_may_go_on() -> None:
    live = random(40, 30)
    before = live.clone()
    staged = Stager(0, 1).copy({"w": live})
    live.zero_()
    assert torch.equal(whole(staged["w"]), before)


def test_memory_is_used_again() -> None:
    stager = Stager(0, 1)
    first = [p.data.data_ptr() for p in stager.copy({"a": random(90, 7), "b": random(5)})["a"]]
    again = stager.copy({"a": random(90, 7, seed=1), "b": random(5)})
    assert [p.data.data_ptr() for p in again["a"]] == first
    assert torch.equal(whole(again["a"]), random(90, 7, seed=1))


def test_another_state_may_follow() -> None:
    stager = Stager(0, 1)
    stager.copy({"a": random(90, 7)})
    larger = {"c": random(400, 7, seed=3), "d": random(2, 900, seed=4)}
    staged = stager.copy(larger)
    assert all(torch.equal(whole(staged[name]), larger[name]) for name in larger)


def test_functions_are_called_in_order_and_their_tensors_dropped() -> None:
    """So at most one gathered tensor lives at a time."""
    made: list[tuple[str, Any]] = []

    def gather(name: str, seed: int) -> torch.Tensor:
        gc.collect()
        assert all(reference() is None for _, reference in made), "an earlier one is still alive"
        tensor = random(30, 7, seed=seed)
        made.append((name, weakref.ref(tensor)))
        return tensor

    names = ["z", "a", "m"]
    live = {name: lambda n=name, i=i: gather(n, i) for i, name in enumerate(names)}
    staged = Stager(0, 1).copy({"model": live})["model"]
    assert [name for name, _ in made] == names
    assert all(torch.equal(whole(staged[n]), random(30, 7, seed=i)) for i, n in enumerate(names))


def test_ranks_share_what_a_function_gives_all_of_them() -> None:
    """Each holds a part on the host, all together hold it once."""
    live = random(500, 8)
    parts = [Stager(rank, 4).copy({"w": lambda: live})["w"] for rank in range(4)]
    assert torch.equal(whole(tuple(piece for part in parts for piece in part)), live)
    sizes = [sum(piece.data.nbytes for piece in part) for part in parts]
    assert max(sizes) < live.nbytes / 2
