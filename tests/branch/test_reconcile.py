"""`branch plan` and `branch apply` on real runs: nothing twice, nothing lost, nothing copied."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.local import _devices
from llm_pretrain.checkpoint.store import CheckpointStore
from tests.support import ROOT, assert_same_bits, metrics, record, tensors

Run = Callable[..., int]


@pytest.fixture
def trunk(train: Run, tmp_path: Path) -> Path:
    """A finished tiny trunk of 40 steps with checkpoints every 10."""
    place = tmp_path / "runs" / "tiny"
    assert train(place) == 0
    return place


def test_plan_shows_and_starts_nothing(
    trunk: Path, cli: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("at=[20 steps, 25 steps, 50 steps]", "cooldown.length=20%")
    assert cli("branch", "plan", f"parent={trunk}", *asked) == 0
    out = capsys.readouterr().out
    assert "tiny.20-25.1-sqrt" in out
    assert "has no checkpoint at step 25; the nearest are at 20 and 30" in out
    assert "ends at step 40" in out
    assert [p.name for p in trunk.parent.iterdir()] == ["tiny"]
    assert not list((trunk / "pins").iterdir())


def test_apply_records_the_lineage_and_copies_no_weights(trunk: Path, cli: Run) -> None:
    ask = ("at=[20 steps]", "cooldown.length=20%", "optimizer.lr=1e-3")
    assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    (branch,) = trunk.parent.glob("tiny.20-25*")
    lineage = record(branch)
    assert lineage["parent"] == {"run": record(trunk)["id"], "step": 20}
    identity = CheckpointStore(trunk / "checkpoints").identity(20)
    assert lineage["parent_checkpoint"] == identity
    assert lineage["overrides"] == ["optimizer.lr=1e-3"]
    assert lineage["state"] == "finished"
    assert lineage["git"].keys() == {"commit", "dirty"}
    assert CheckpointStore(branch / "checkpoints").steps() == [25]
    assert [p.name[:6] for p in (trunk / "pins").iterdir()] == ["000020"]


def test_the_branch_starts_from_the_parents_state(trunk: Path, cli: Run, train: Run) -> None:
    """A branch without a change goes on exactly as its parent did."""
    ask = ("at=[20 steps]", "cooldown.length=0 steps")
    assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    branch = trunk.parent / "tiny.20-40.constant"
    assert_same_bits(tensors(trunk, 40), tensors(branch, 40))
    assert metrics(branch) == [row for row in metrics(trunk) if row["step"] > 20]


def test_apply_twice_starts_nothing_twice(
    trunk: Path, cli: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("branch", "apply", f"parent={trunk}", "at=[20 steps, 30 steps]")
    assert cli(*ask) == 0
    runs = sorted(trunk.parent.iterdir())
    before = {run.name: (record(run), metrics(run)) for run in runs}
    capsys.readouterr()
    assert cli(*ask) == 0
    assert "nothing to start" in capsys.readouterr().out
    assert {r.name: (record(r), metrics(r)) for r in sorted(trunk.parent.iterdir())} == before


def test_two_at_once_start_nothing_twice(trunk: Path, tiny_corpus: Path) -> None:
    arguments = ["branch", "apply", f"parent={trunk}", "at=[10 steps, 20 steps, 30 steps]"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "llm_pretrain.cli", *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    branches = sorted(p for p in trunk.parent.iterdir() if p != trunk)
    assert len(branches) == 3
    for branch in branches:
        assert len(record(branch)["sessions"]) == 1
        steps = [row["step"] for row in metrics(branch) if "loss" in row]
        assert steps == sorted(set(steps))


def test_several_at_a_time(trunk: Path, cli: Run) -> None:
    ask = ("at=[10 steps, 20 steps, 30 steps]", "cluster.jobs=2")
    assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    branches = [p for p in trunk.parent.iterdir() if p != trunk]
    assert len(branches) == 3
    assert {record(branch)["state"] for branch in branches} == {"finished"}


def test_made_now_and_trained_by_hand_later(
    trunk: Path, cli: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("at=[20 steps]", "cluster.jobs=0", "engine.recompute=block")
    assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    branch = trunk.parent / "tiny.20-25.1-sqrt"
    assert f"-m llm_pretrain.train resume={branch}" in capsys.readouterr().out
    assert record(branch)["sessions"] == []
    assert cli("train", f"resume={branch}") == 0
    assert record(branch)["state"] == "finished"


def test_a_plan_in_the_trunks_config(
    train: Run, cli: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "tiny"
    plan = "plan=[{ends: [17 steps, 33 steps], cooldown: {length: 30%, shape: linear}}]"
    keep = ("checkpoint.every=10 steps", "checkpoint.keep_last=1", "checkpoint.keep_every=0 steps")
    assert train(place, plan, *keep) == 0
    assert CheckpointStore(place / "checkpoints").steps() == [12, 24, 40]
    assert cli("branch", "apply", f"parent={place}") == 0
    assert record(tmp_path / "tiny.24-33.linear")["state"] == "finished"
    assert record(tmp_path / "tiny.12-17.linear")["step"] == 17


def test_branches_of_branches(trunk: Path, cli: Run) -> None:
    ask = ("at=[20 steps]", "cooldown.length=20 steps", "checkpoint.keep_every=10 steps")
    assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    child = trunk.parent / "tiny.20-40.1-sqrt"
    ask = ("at=[30 steps]", "cooldown.length=20 steps", "cooldown.shape=linear")
    assert cli("branch", "apply", f"parent={child}", *ask) == 0
    grandchild = trunk.parent / "tiny.20-40.1-sqrt.30-50.linear"
    assert record(grandchild)["parent"] == {"run": record(child)["id"], "step": 30}
    rates = [row["lr"] for row in metrics(grandchild) if "loss" in row]
    level = 3e-3 * (1 - 0.5**0.5)
    assert rates == pytest.approx([level * (1 - u / 20) for u in range(20)])


def test_pinned_checkpoints_outlive_retention(train: Run, cli: Run, tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    keep = ("checkpoint.keep_last=1", "checkpoint.keep_every=0 steps")
    assert train(place, *keep, "schedule.total=20 steps") == 0
    assert cli("branch", "apply", f"parent={place}", "at=[20 steps]") == 0
    assert cli("train", f"resume={place}", "schedule.total=60 steps") == 0
    assert CheckpointStore(place / "checkpoints").steps() == [20, 60]


def test_a_waiting_branch_is_no_error(
    train: Run, cli: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "tiny"
    assert train(place, "schedule.total=20 steps") == 0
    data = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps({**data, "state": "interrupted"}))
    config = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(config.replace("total: 20 steps", "total: 90 steps"))
    ask = ("branch", "apply", f"parent={place}", "at=[20 steps, 50 steps]")
    assert cli(*ask) == 0
    assert "is at step 20, not yet at 50" in capsys.readouterr().out
    assert (tmp_path / "tiny.20-25.1-sqrt").exists()
    assert not (tmp_path / "tiny.50-62.1-sqrt").exists()


def test_new_data_in_a_branch_keeps_the_tokenizer(trunk: Path, cli: Run, tmp_path: Path) -> None:
    extra = tmp_path / "extra.jsonl"
    lines = (json.dumps({"text": f"number {i} " * 60, "id": str(i)}) for i in range(200))
    extra.write_text("\n".join(lines))
    source = f"data.sources.extra={{kind: text, format: json, path: {extra}, weight: 3}}"
    ask = ("at=[20 steps]", "cooldown.length=20 steps", source)
    assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    (branch,) = trunk.parent.glob("tiny.20-40*")
    assert (branch / "tokenizer.json").read_bytes() == (trunk / "tokenizer.json").read_bytes()
    assert record(branch)["state"] == "finished"


def test_tree(trunk: Path, cli: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("branch", "apply", f"parent={trunk}", "at=[20 steps]") == 0
    capsys.readouterr()
    assert cli("tree", str(trunk.parent)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "tiny finished step 40/40 loss" in out
    assert "tiny.20-25.1-sqrt from step 20 finished step 25/25" in out
    assert out.count("val_loss") == 2


def test_a_prolonged_trunk_knows_its_branches(
    trunk: Path, cli: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("branch", "apply", f"parent={trunk}", "at=[20 steps, 30 steps]")
    assert cli(*ask) == 0
    change = ("schedule.total=50 steps", "data.micro_batch=2")
    assert cli("train", f"resume={trunk}", *change) == 0
    capsys.readouterr()
    assert cli(*ask) == 0
    assert "nothing to start" in capsys.readouterr().out


def test_trunks_of_one_name_in_two_places(train: Run, cli: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        short = ("schedule.total=10 steps", f"run.seed={seed}")
        assert train(tmp_path / name, *short) == 0
        assert cli("branch", "apply", f"parent={tmp_path / name}", "at=[10 steps]") == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "a", "b", "a.10-12.1-sqrt", "b.10-12.1-sqrt",
    }  # fmt: skip


def test_the_same_branch_however_it_is_written(trunk: Path, cli: Run) -> None:
    for rate in ("1e-3", "0.001"):
        ask = ("at=[20 steps]", f"optimizer.lr={rate}")
        assert cli("branch", "apply", f"parent={trunk}", *ask) == 0
    assert len([p for p in trunk.parent.iterdir() if p != trunk]) == 1


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [_devices(slot) for slot in range(3)] == ["5", "7", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _devices(0) is None
