"""The run directory: created whole, read back, one line a metric."""

import json
from pathlib import Path

import pytest

from llm_pretrain import runs
from llm_pretrain.branch.tree import tree
from llm_pretrain.config.compose import compose
from llm_pretrain.errors import UserError
from llm_pretrain.records import Parent, new_record
from llm_pretrain.runs import Run, scan


def make(place: Path, name: str = "a", parent: Parent | None = None) -> Run:
    config = compose([f"run.dir={place / name}", f"run.name={name}"])
    return Run.create(config, new_record(name, total=1000, parent=parent))


def test_created_and_opened(tmp_path: Path) -> None:
    run = make(tmp_path)
    again = Run.open(tmp_path / "a")
    assert again.config == run.config
    assert again.record.state == "created"
    assert set(again.record.versions) >= {"python", "torch"}
    stored = json.loads((tmp_path / "a" / "run.json").read_text())
    assert stored["parent"] is None
    assert stored["id"].startswith("a-")


def test_creating_twice_gives_the_first(tmp_path: Path) -> None:
    first = make(tmp_path).record
    assert make(tmp_path).record == first
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a run"):
        make(tmp_path)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/runs"])
def test_a_place_that_cannot_be_written(place: str) -> None:
    with pytest.raises(UserError, match=r"run\.dir: .* cannot be written"):
        make(Path(place))


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no run\.json"):
        Run.open(tmp_path)


def test_metrics_survive_a_cut_line_and_are_rewound(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.append_metrics(*({"step": s, "loss": 1 / s} for s in range(1, 6)))
    with run.metrics_path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    run.rewind_metrics(3)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert run.metrics_path.read_text().endswith("\n")


def test_the_newest_metrics_are_those_of_the_last_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    assert run.newest_metrics("step", "loss") == {}
    run.append_metrics(
        {"step": 1, "val_loss": 9.0}, *({"step": s, "loss": s} for s in range(2, 40))
    )
    with run.metrics_path.open("a") as file:
        file.write('{"step": 40, "lo')
    rows = run.metrics()
    newest = {key: row[key] for row in rows for key in row}
    for size in (1, 7, 64, 2**16):
        monkeypatch.setattr(runs, "_BLOCK", size)
        assert run.newest_metrics("step", "loss", "val_loss", "lr") == newest
        assert run.newest_metrics("loss") == {"loss": 39}


def test_pins(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.pin(300, "child-one")
    run.pin(300, "child-two")
    run.pin(300, "child-two")
    run.pin(1_000_000, "late")
    assert run.pinned() == {300, 1_000_000}
    run.unpin(300, "child-one")
    assert run.pinned() == {300, 1_000_000}
    run.unpin(300, "child-two")
    assert run.pinned() == {1_000_000}


def test_parents_are_found_also_after_a_move(tmp_path: Path) -> None:
    parent = make(tmp_path, "trunk")
    child = make(tmp_path, "child", Parent(parent.record.id, 5))
    found = child.parent_run()
    assert found is not None
    assert found.record.id == parent.record.id
    (tmp_path / "trunk").rename(tmp_path / "renamed")
    found = child.parent_run()
    assert found is not None
    assert found.path.name == "renamed"
    (tmp_path / "renamed" / "run.json").unlink()
    with pytest.raises(UserError, match=r"trunk-.* is not at"):
        child.parent_run()


def test_scan(tmp_path: Path) -> None:
    make(tmp_path, "a")
    make(tmp_path, "b")
    (tmp_path / "other").mkdir()
    assert {run.record.name for run in scan(tmp_path)} == {"a", "b"}
    assert [run.record.name for run in scan(tmp_path / "b")] == ["b"]
    with pytest.raises(UserError, match="no such folder"):
        scan(tmp_path / "c")


def test_lost_is_told_from_running(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.update(state="running")
    assert run.status == "lost"
    with run.hold():
        assert run.status == "running"


def test_a_damaged_record_hides_only_its_own_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = make(tmp_path, "trunk")
    child = make(tmp_path, "child", Parent(parent.record.id, 5))
    damaged = make(tmp_path, "aaa")
    damaged.record_path.write_text("{")
    assert [run.path.name for run in scan(tmp_path)][-1] == "aaa"
    assert child.parent_run() is not None
    assert tree([str(tmp_path)]) == 0
    assert "aaa  run.json cannot be read" in capsys.readouterr().out
