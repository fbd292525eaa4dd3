"""Documents: which, in what order, under what name, and what is said when there are none."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_pretrain.config.data import SourceConfig
from llm_pretrain.data.corpus import Document, definition, documents, held_out
from llm_pretrain.errors import UserError

ROWS = [
    {"id": "a/1", "text": "first\nof all", "n": 1},
    {"id": "a/2", "text": "", "n": 2},
    {"id": "b/3", "text": "two — é漢🙂", "n": 3},
    {"id": "b/4", "text": None, "n": 4},
    {"id": "c/5", "text": "last", "n": 5},
]
NAMED = [Document(row["id"], row["text"]) for row in ROWS if row["text"]]
COUNTED = [Document(str(i), row["text"]) for i, row in enumerate(ROWS) if row["text"]]


def write(folder: Path, kind: str) -> None:
    """ROWS in two files, whose names sort in the order of the rows."""
    for i, part in enumerate((ROWS[:2], ROWS[2:])):
        if kind == "parquet":
            table = pa.table({key: [row[key] for row in part] for key in part[0]})
            pq.write_table(table, folder / f"part{i}.parquet")
        else:
            lines = (json.dumps(row) + "\n" for row in part)
            (folder / f"part{i}.json").write_text("".join(lines))


def source(path: Path | str, kind: str | None, **kwargs: Any) -> SourceConfig:
    return SourceConfig(kind="text", path=str(path), format=kind, **kwargs)  # type: ignore[arg-type]


def test_stdlib_is_the_library_and_nothing_else() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    found = list(documents("s", SourceConfig()))
    names = [document.name for document in found]
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py", "collections/__init__.py"} <= set(names)
    assert not [n for n in names if {"site-packages", "__pycache__"} & set(n.split("/"))]
    for document in found[::50]:
        assert document.text == (root / document.name).read_bytes().decode()
    assert list(documents("s", SourceConfig(limit=7))) == found[:7]
    assert len(found) > 500


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_of_files(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    pattern = tmp_path / f"*.{kind}"
    assert list(documents("s", source(pattern, kind))) == COUNTED
    assert list(documents("s", source(pattern, kind, id_field="id"))) == NAMED
    assert list(documents("s", source(pattern, kind, id_field="n")))[1].name == "3"
    assert list(documents("s", source(pattern, kind, limit=2))) == COUNTED[:2]
    assert list(documents("s", source(tmp_path / f"part0.{kind}", kind))) == COUNTED[:1]
    assert list(documents("s", source(pattern, kind, field="id")))[1] == Document("1", "a/2")


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    assert list(documents("s", source(tmp_path / "a.txt", "text"))) == [
        ("0", "one"),
        ("2", "three"),
    ]


def test_relative_globs_and_other_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "json")
    monkeypatch.chdir(tmp_path)
    assert list(documents("s", source("**/*.json", "json", split="test"))) == COUNTED


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_wrong_columns_are_named(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    pattern = tmp_path / f"*.{kind}"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"field": "txt"}, r"data\.sources\.s\.field: no column 'txt'.*did you mean 'text'"),
        ({"id_field": "name"}, r"data\.sources\.s\.id_field: no column 'name'"),
        ({"field": "n"}, r"data\.sources\.s\.field: 'n' holds int in row 0"),
        ({"id_field": "text"}, r"data\.sources\.s\.id_field: 'text' is empty in row 3"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            list(documents("s", source(pattern, kind, **options)))


@pytest.mark.parametrize("kind", ["json", "parquet", "text"])
def test_missing_and_broken_files_are_named(tmp_path: Path, kind: str) -> None:
    for absent in (source(tmp_path / "no*", kind), source(tmp_path, kind)):
        for attempt in (lambda s: list(documents("s", s)), lambda s: definition("s", s)):
            with pytest.raises(UserError, match=r"data\.sources\.s\.path: no file matches"):
                attempt(absent)
    (tmp_path / "broken").write_bytes(b"{\xff\xfe")
    with pytest.raises(UserError, match=r"data\.sources\.s\.path: .*broken cannot be read"):
        list(documents("s", source(tmp_path / "broken", kind)))


def test_hub_names_go_to_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def fake(**kwargs: Any) -> list[dict[str, str]]:
        asked.update(kwargs)
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    wanted = source("someone/corpus", None, config="en", split="dev")
    assert list(documents("s", wanted)) == [("0", "x")]
    assert asked == {"path": "someone/corpus", "name": "en", "split": "dev", "streaming": True}

    def missing(**kwargs: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("no such thing")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(UserError, match=r"data\.sources\.s\.path: someone/corpus .*no such thing"):
        list(documents("s", wanted))
    with pytest.raises(UserError, match=r"data\.sources\.s\.format: missing"):
        list(documents("s", source(tmp_path, None)))


def test_definition_knows_the_text_and_not_the_weight(tmp_path: Path) -> None:
    write(tmp_path, "json")
    pattern = tmp_path / "*.json"
    base = definition("s", source(pattern, "json"))
    assert definition("s", source(pattern, "json", weight=5.0)) == base
    assert definition("s", source(pattern, "json", limit=1)) != base
    with (tmp_path / "part1.json").open("a") as file:
        file.write("\n")
    assert definition("s", source(pattern, "json")) != base
    library = definition("s", SourceConfig())
    assert {"python", "files", "bytes"} <= library.keys()
    assert definition("s", source("hub/name", None)) != definition("s", source("hub/other", None))


def test_held_out_share_is_a_fixed_property_of_the_name() -> None:
    names = [f"document {i}" for i in range(20_000)]
    share = sum(held_out(name, 0.05) for name in names) / len(names)
    assert abs(share - 0.05) < 0.006  # four standard deviations
    chosen = {name for name in names if held_out(name, 0.01)}
    assert chosen < {name for name in names if held_out(name, 0.05)}
    assert [i for i in range(60) if held_out(str(i), 0.2)] == [
        2,
        6,
        17,
        18,
        23,
        29,
        34,
        47,
        50,
        51,
        52,
        55,
        56,
    ]


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_half_read_streams_let_the_process_exit(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": [f"line {i} " * 50 for i in range(20_000)]})
    for i in range(3):
        path = tmp_path / f"{i}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=2000)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    code = (
        "from llm_pretrain.config.data import SourceConfig\n"
        "from llm_pretrain.data.corpus import documents\n"
        f"source = SourceConfig(kind='text', path={str(tmp_path / '*')!r}, format={kind!r})\n"
        "stream = documents('s', source)\n"
        "print(next(stream).name)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
