"""Token files: the bytes on disk, and reading across file boundaries."""

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pretrain.atomic import appearing, remove_leftovers
from llm_pretrain.data.shards import TokenStream, token_size, write_shard
from llm_pretrain.errors import UserError


def by_hand(
    folder: Path, name: str, documents: list[list[int]], metadata: str | None, letter: str = "H"
) -> None:
    """The three files as datatrove lays them out, byte by byte."""
    flat = [token for document in documents for token in document]
    ends = [sum(len(d) for d in documents[: i + 1]) for i in range(len(documents))]
    (folder / name).write_bytes(b"".join(struct.pack(f"<{letter}", token) for token in flat))
    (folder / f"{name}.index").write_bytes(b"".join(struct.pack("<Q", end) for end in ends))
    if metadata is not None:
        (folder / f"{name}.metadata").write_text(metadata)


@pytest.mark.parametrize(
    ("letter", "metadata"),
    [("H", "gpt2|2\n5\n5 T"), ("H", "gpt2\n5\n5 T"), ("H", None), ("I", "llama|4\n5\n5 T")],
)
def test_reads_datatrove_layout(tmp_path: Path, letter: str, metadata: str | None) -> None:
    by_hand(tmp_path, "00000_00000_shuffled.ds", [[7, 1, 0], [65535, 0]], metadata, letter)
    stream = TokenStream(tmp_path)
    assert len(stream) == 5
    assert stream.dtype == np.dtype("<u2" if letter == "H" else "<u4")
    assert stream.read(0, 5).tolist() == [7, 1, 0, 65535, 0]


def test_writes_datatrove_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.ds"
    documents = [np.array([258, 3]), np.array([], dtype=np.int64), np.array([9])]
    assert write_shard(path, documents, "me", 2) == (3, 3)
    assert path.read_bytes() == bytes([2, 1, 3, 0, 9, 0])
    assert (tmp_path / "a.ds.index").read_bytes() == struct.pack("<QQQ", 2, 2, 3)
    assert (tmp_path / "a.ds.metadata").read_text() == "me|2\n3\n3.00 T"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ds", "a.ds.index", "a.ds.metadata"]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0.00 T"), (999, "999 T"), (1234, "1.23 kT"), (99_950, "100 kT"), (3_150_000, "3.15 MT")],
)
def test_metadata_counts_for_people(tmp_path: Path, tokens: int, text: str) -> None:
    write_shard(tmp_path / "a.ds", [np.zeros(tokens, dtype=np.uint16)], "me", 2)
    assert (tmp_path / "a.ds.metadata").read_text().splitlines()[1:] == [str(tokens), text]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    wide=st.booleans(),
    data=st.data(),
)
def test_stream_is_the_concatenation(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], wide: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    whole = np.arange(sum(lengths)) + (70_000 if wide else 0)
    ends = np.cumsum(lengths)
    for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        write_shard(folder / f"{i:03d}.ds", [whole[end - length : end]], "me", 4 if wide else 2)
    stream = TokenStream(folder)
    start = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - start))
    read = stream.read(start, count)
    assert read.dtype == stream.dtype
    assert read.tolist() == whole[start : start + count].tolist()
    for bad_start, bad_count in ((-1, 1), (0, len(whole) + 1), (0, -1), (len(whole), 1)):
        with pytest.raises(IndexError):
            stream.read(bad_start, bad_count)


def test_token_size_follows_the_largest_id() -> None:
    assert [token_size(v) for v in (258, 65_536, 65_537, 200_000)] == [2, 2, 4, 4]


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.ds"):
        TokenStream(tmp_path)
    by_hand(tmp_path, "a.ds", [[1, 2, 3]], "gpt2|2\n4\n4 T")
    with pytest.raises(UserError, match=r"a\.ds: 6 bytes.*4 tokens"):
        TokenStream(tmp_path)
    by_hand(tmp_path, "a.ds", [[1, 2, 3]], "gpt2|3\n3\n3 T")
    with pytest.raises(UserError, match=r"a\.ds\.metadata"):
        TokenStream(tmp_path)
    by_hand(tmp_path, "a.ds", [[1, 2, 3]], "")
    with pytest.raises(UserError, match=r"a\.ds\.metadata"):
        TokenStream(tmp_path)
    (tmp_path / "a.ds.metadata").unlink()
    (tmp_path / "a.ds").write_bytes(b"123")
    with pytest.raises(UserError, match=r"a\.ds: 3 bytes"):
        TokenStream(tmp_path)
    by_hand(tmp_path, "a.ds", [[1]], "gpt2|2\n1\n1 T")
    by_hand(tmp_path, "b.ds", [[1]], "gpt2|4\n1\n1 T", "I")
    with pytest.raises(UserError, match=r"b\.ds: 4 bytes per token"):
        TokenStream(tmp_path)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        write_shard(tmp_path / "a.ds", [np.array([1]), np.array([65_536])], "me", 2)
    with pytest.raises(ValueError, match="does not fit"):
        write_shard(tmp_path / "a.ds", [np.array([-1])], "me", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with appearing(path) as file:
            file.write(b"new and longer")
            file.flush()
            assert path.read_bytes() == b"old"
        assert reader.read() == b"old"  # another file took the name; this one was not touched
    assert path.read_bytes() == b"new and longer"
    with pytest.raises(RuntimeError), appearing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_the_dead_go_and_others_stay(tmp_path: Path) -> None:
    with appearing(tmp_path / "x") as file:
        file.write(b"1")
        mine = next(tmp_path.glob(".x@*"))
        # Not waited for yet: a zombie, which is as dead.
        child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.read() == b""
        time.sleep(0.2)
        dead = mine.with_name(mine.name.replace(f"@{os.getpid()}@", f"@{child.pid}@"))
        elsewhere = dead.with_name(dead.name.replace(dead.name.split("@")[1], "other-host"))
        for path in (dead, elsewhere):
            path.write_bytes(b"")
        (tmp_path / ".strange.tmp").write_bytes(b"")
        remove_leftovers(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {mine.name, elsewhere.name, ".strange.tmp"}
        child.communicate()
        dead.write_bytes(b"")
        remove_leftovers(tmp_path)
        assert not dead.exists()
    assert (tmp_path / "x").read_bytes() == b"1"
