"""Preparation: the same files whatever kills it, nothing twice, nothing held out in training."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_pretrain.config.data import DataConfig, SourceConfig, TokenizerConfig
from llm_pretrain.data import chunks, corpus, prepare, progress
from llm_pretrain.data.corpus import held_out
from llm_pretrain.data.prepare import Prepared, PreparedSource
from llm_pretrain.data.shards import TokenStream, write_shard
from llm_pretrain.errors import UserError

LIBRARY = SourceConfig(limit=300)
CHUNK = 60_000


def config(cache: Path, source: SourceConfig = LIBRARY, **kwargs: Any) -> DataConfig:
    options: dict[str, Any] = {
        "workers": 1,
        "validation_fraction": 0.05,
        "sequence_length": 64,
        "sources": {"docs": source},
    }
    return DataConfig(
        cache=str(cache),
        tokenizer=TokenizerConfig(vocab_size=500, train_bytes=100_000),
        **(options | kwargs),
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHUNK_CHARACTERS", CHUNK)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache after an uninterrupted preparation in one process."""
    cache = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CHUNK_CHARACTERS", CHUNK)
        prepare.prepare(config(cache))
    return cache


def files(cache: Path) -> dict[str, bytes]:
    """Every file under a cache, temporary ones included."""
    found = (path for path in cache.rglob("*") if path.is_file())
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in found}


def start(cache: Path, marker: str) -> subprocess.Popen[bytes]:
    """A preparation in a process of its own, with two workers that carry `marker`."""
    code = (
        "from llm_pretrain.config.data import *\n"
        "from llm_pretrain.data import prepare\n"
        f"prepare.CHUNK_CHARACTERS = {CHUNK}\n"
        f"prepare.prepare({config(cache, workers=2)!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MARKER": marker}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
    )


def processes(marker: str) -> list[int]:
    """Live processes that carry `marker`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARKER={marker}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it ended, or is not ours
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail after half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def documents_of(folder: Path) -> Iterator[bytes]:
    """The documents of all shards in a folder, as bytes, by way of the index files."""
    for shard in sorted(folder.glob("*.ds")):
        tokens, start = np.fromfile(shard, "<u2"), 0
        for end in np.fromfile(shard.with_name(f"{shard.name}.index"), "<u8").tolist():
            yield tokens[start:end].tobytes()
            start = end


def everything(stream: Any) -> list[int]:
    tokens: list[int] = stream.read(0, len(stream)).tolist()
    return tokens


def test_the_files_hold_the_documents(reference: Path) -> None:
    made = prepare.prepare(config(reference))
    (folder,) = (reference / "tokens").iterdir()
    wanted: dict[str, list[bytes]] = {"train": [], "validation": []}
    for document in corpus.documents("docs", LIBRARY):
        (ids,) = made.tokenizer.encode_batch([document.text])
        split = "validation" if held_out(document.name, 0.05) else "train"
        ended = [*ids.tolist(), made.tokenizer.end_of_text_id]
        wanted[split].append(np.array(ended, dtype="<u2").tobytes())
    assert len(list((folder / "train").glob("*.ds"))) > 20
    for split, expected in wanted.items():
        assert list(documents_of(folder / split)) == expected
        record = json.loads((folder / "prepared.json").read_text())
        assert record["documents"][split] == len(expected)
        assert record["tokens"][split] == sum(map(len, expected)) // 2
    source = made.sources["docs"]
    assert (len(source.train), len(source.validation)) == tuple(record["tokens"].values())


def test_no_held_out_document_is_in_training(tmp_path: Path) -> None:
    texts = [f"Document {i} has its own words: {i * i} and {i**3}." for i in range(2000)]
    source = lines(tmp_path / "a.jsonl", texts)
    prepare.prepare(config(tmp_path, source, sequence_length=8))
    (folder,) = (tmp_path / "tokens").iterdir()
    training = b"".join(documents_of(folder / "train"))
    held = list(documents_of(folder / "validation"))
    assert 60 < len(held) < 140
    assert not [document for document in held if document in training]
    assert len(held) + len(list(documents_of(folder / "train"))) == len(texts)


def test_workers_do_not_change_a_byte(reference: Path, tmp_path: Path) -> None:
    two = prepare.prepare(config(tmp_path, workers=2))
    assert files(tmp_path) == files(reference)
    assert (
        two.sources["docs"].fingerprint
        == prepare.prepare(config(reference)).sources["docs"].fingerprint
    )


def test_second_call_reads_no_text(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(reference)
    monkeypatch.delattr(corpus, "documents")
    made = prepare.prepare(config(reference))
    assert isinstance(made, Prepared)
    assert made.sources["docs"].fingerprint
    assert files(reference) == before
    # Neither weight nor batch nor name is part of what was prepared.
    renamed = config(reference, sources={"other": dataclasses.replace(LIBRARY, weight=3.0)})
    assert "other" in prepare.prepare(dataclasses.replace(renamed, global_batch=32)).sources


def shards_done(cache: Path) -> int:
    return sum(1 for _ in cache.glob("tokens/*/*/*.metadata"))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds workers in /proc")
def test_killed_at_any_moment_it_ends_the_same(reference: Path, tmp_path: Path) -> None:
    draw = random.Random(time.time_ns())
    for attempt in range(7):
        marker = f"{tmp_path.name}-{attempt}"
        wanted = shards_done(tmp_path) + (draw.randrange(1, 8) if attempt else 0)
        process = start(tmp_path, marker)
        until(lambda n=wanted: shards_done(tmp_path) >= n)
        time.sleep(draw.uniform(0, 0.02 if attempt else 0.5))  # first: before there is a shard
        # With its workers, as a scheduler does, or alone, as the kernel does for memory.
        kill = os.killpg if attempt % 2 else os.kill
        kill(process.pid, signal.SIGKILL)
        process.wait()
        try:
            until(lambda m=marker: not processes(m))
        finally:
            for orphan in processes(marker):
                os.kill(orphan, signal.SIGKILL)
        process.communicate()
        assert not list(tmp_path.rglob("prepared.json"))
    last = start(tmp_path, "last")
    assert (last.communicate()[1], last.returncode) == (b"", 0)
    assert files(tmp_path) == files(reference)


def test_interrupted_work_is_not_done_again(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = chunks.write_shard, []

    def failing(path: Path, *args: Any) -> Any:
        calls.append(path.name)
        if len(calls) == 10:
            raise OSError("disk full")
        return real(path, *args)

    monkeypatch.setattr(chunks, "write_shard", failing)
    with pytest.raises(OSError, match="disk full"):
        prepare.prepare(config(tmp_path))
    assert not list(tmp_path.rglob("prepared.json"))
    prepare.prepare(config(tmp_path))
    # The tenth shard completes the fifth chunk, which alone is written again.
    assert calls[10] == calls[8] == "000004.ds"
    assert files(tmp_path) == files(reference)


def test_two_at_once_do_no_harm(reference: Path, tmp_path: Path) -> None:
    both = [start(tmp_path, "both") for _ in range(2)]
    assert [(p.communicate()[1], p.returncode) for p in both] == [(b"", 0)] * 2
    assert files(tmp_path) == files(reference)


def test_a_killed_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly(str):
        def __reduce__(self) -> Any:
            return (os.abort, ())

    text = Deadly("x" * CHUNK)
    monkeypatch.setattr(
        prepare.corpus, "documents", lambda *_: iter([corpus.Document("name", text)])
    )
    with pytest.raises(UserError, match=r"data\.workers"):
        prepare.prepare(config(tmp_path, workers=2))


def test_formats_of_the_same_text_give_the_same_tokens(tmp_path: Path) -> None:
    rows = [{"name": f"n{i}", "text": f"{i} — text\nof é漢🙂 " * (i % 50 + 1)} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=70)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}
    for kind, name in (("parquet", "a.parquet"), ("json", "a.jsonl")):
        path = str(tmp_path / name)
        source = SourceConfig(kind="text", format=kind, path=path, id_field="name")  # type: ignore[arg-type]
        made[kind] = prepare.prepare(config(tmp_path / kind, source)).sources["docs"]
    assert made["parquet"].fingerprint == made["json"].fingerprint
    for split in ("train", "validation"):
        streams = [getattr(source, split) for source in made.values()]
        assert everything(streams[0]) == everything(streams[1])


def lines(path: Path, texts: list[str]) -> SourceConfig:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SourceConfig(kind="text", format="json", path=str(path))


def test_too_little_text_is_an_error_that_helps(reference: Path, tmp_path: Path) -> None:
    (given,) = (reference / "tokenizers").rglob("tokenizer.json")
    tokenizer = TokenizerConfig(path=str(given))
    enough = ["word " * 2000] * 40
    cases = [
        (lines(tmp_path / "empty.jsonl", ["", ""]), {}, "holds no document"),
        (lines(tmp_path / "short.jsonl", ["a b"] * 9), {}, "tokens for training.*takes 65"),
        (
            lines(tmp_path / "none_held.jsonl", enough),
            {"validation_fraction": 1e-9},
            "0 tokens for",
        ),
    ]
    for source, options, message in cases:
        wanted = dataclasses.replace(config(tmp_path, source, **options), tokenizer=tokenizer)
        with pytest.raises(UserError, match=rf"data\.sources\.docs: .*{message}") as caught:
            prepare.prepare(wanted)
        assert "validation_fraction" in str(caught.value) or not options


def test_damage_in_the_cache_is_named(tmp_path: Path) -> None:
    prepare.prepare(config(tmp_path))
    shard = next(iter(tmp_path.rglob("train/000003.ds")))
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"000003\.ds"):
        prepare.prepare(config(tmp_path))
    for path in shard.parent.glob("000003.ds*"):
        path.unlink()
    with pytest.raises(UserError, match=r"delete .* to prepare it again"):
        prepare.prepare(config(tmp_path))


def token_folder(path: Path, tokens: list[int], size: int = 2) -> Path:
    path.mkdir()
    write_shard(path / "a.ds", [np.array(tokens)], "somebody's", size)
    return path


def test_tokens_are_used_as_they_are(reference: Path, tmp_path: Path) -> None:
    (given,) = (reference / "tokenizers").rglob("tokenizer.json")
    train = token_folder(tmp_path / "train", list(range(400)))
    held = token_folder(tmp_path / "held", list(range(100)))
    source = SourceConfig(kind="tokens", path=str(train), validation_path=str(held))

    def opened(source: SourceConfig) -> PreparedSource:
        wanted = config(tmp_path / "cache", source)
        tokenizer = TokenizerConfig(path=str(given))
        return prepare.prepare(dataclasses.replace(wanted, tokenizer=tokenizer)).sources["docs"]

    made = opened(source)
    assert isinstance(made.train, TokenStream)
    assert everything(made.train) == list(range(400))
    assert everything(made.validation) == list(range(100))
    assert not (tmp_path / "cache").exists()
    other = token_folder(tmp_path / "other", [*range(399), 7])
    moved = token_folder(tmp_path / "moved", list(range(400)))
    prints = [opened(dataclasses.replace(source, path=str(p))).fingerprint for p in (other, moved)]
    assert prints[0] != made.fingerprint == prints[1]

    huge = token_folder(tmp_path / "huge", [*range(100), 499, 500])
    cases = [
        ({"validation_path": None}, r"docs\.validation_path: missing"),
        ({"path": str(tmp_path / "absent")}, r"absent: holds no \.ds"),
        ({"path": str(huge)}, r"docs\.path: .*has the id 500, but .*500.*somebody's"),
        ({"validation_path": str(token_folder(tmp_path / "few", [1] * 64))}, "64 tokens for val"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            opened(dataclasses.replace(source, **change))


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_keeps_quiet_when_fast(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal)

    def shown(times: list[float], show: bool = True) -> str:
        clock[0] = 0.0
        with progress.Meter("Preparing docs", show) as meter:
            for moment in times:
                clock[0] = moment
                meter.add(1, 1000)
        return capsys.readouterr().err

    assert shown([0.5, 1.9]) == shown([5.0, 50.0], show=False) == ""
    output = shown([1.0, 2.0, 3.0, 11.9, 12.0, 13.0])
    if terminal:
        assert "Preparing docs: 6 documents, 6,000 tokens, 462 tokens/s" in output
    else:
        counts = [line.split(": ")[1].split(" ")[0] for line in output.splitlines()]
        assert counts == ["2", "5", "6"]
        assert output.startswith("Preparing docs: 2 documents, 2,000 tokens, 1,000 tokens/s\n")
