"""Averages in real runs: after stops, in branches, on ranks, beside the raw weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks.commands import Zygote
from tests.support import CONF, assert_same_bits, assert_same_run, metrics, tensors

Train = Callable[..., int]
ON = (
    "average.every=2 steps",
    "average.windows=[10 steps,20 steps]",
    "average.half_lives=[6 steps]",
)


def test_they_leave_the_run_as_it_is(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "without") == 0
    assert train(tmp_path / "with", *ON) == 0
    plain = [
        {k: v for k, v in row.items() if not k.startswith("val_loss_")}
        for row in metrics(tmp_path / "with")
    ]
    assert plain == metrics(tmp_path / "without")
    mine, theirs = tensors(tmp_path / "with", 40), tensors(tmp_path / "without", 40)
    mine.pop("average")
    assert_same_bits(mine, theirs)
    rows = {row["step"]: row for row in metrics(tmp_path / "with") if "val_loss" in row}
    assert "val_loss_window_20" not in rows[10]
    for step in (10, 20, 30, 40):
        losses = [v for k, v in rows[step].items() if k.startswith("val_loss_")]
        assert len(losses) == (3 if step == 10 else 4)
        assert rows[step]["val_loss_average"] == min(losses)
        assert all(value != rows[step]["val_loss"] for value in losses)


def test_the_best_one_is_shown(
    train: Train, cli: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the log, the tree and the report, with its name."""
    assert train(tmp_path / "run", *ON) == 0
    row = [row for row in metrics(tmp_path / "run") if "val_loss" in row][-1]
    kinds = {
        "window_10": "window of 10",
        "window_20": "window of 20",
        "half_life_6": "half-life of 6",
    }
    best = min(kinds, key=lambda name: row[f"val_loss_{name}"])
    said = f"{row['val_loss_average']:.4f} ({kinds[best]} steps)"
    assert f"averaged {said}" in (tmp_path / "run" / "train.log").read_text()
    capsys.readouterr()
    assert cli("tree", str(tmp_path)) == 0
    assert f"averaged {said}" in " ".join(capsys.readouterr().out.split())
    assert cli("report", str(tmp_path)) == 0
    page = (tmp_path / "report.html").read_text()
    assert "its best average" in page
    assert said in page
    assert "tiny, averaged" in page


@pytest.mark.parametrize("step", [1, 7, 10, 33])
def test_stopped_and_resumed(
    train: Train, stop_at: Callable[[int | None], None], tmp_path: Path, step: int
) -> None:
    assert train(tmp_path / "whole", *ON) == 0
    stop_at(step)
    assert train(tmp_path / "parts", *ON) == 75
    stop_at(None)
    assert train(tmp_path / "parts", *ON) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 40)


def test_turned_on_and_off_by_a_resume(train: Train, cli: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "run", "schedule.total=14 steps") == 0
    more = ("schedule.total=44 steps", "average.every=2 steps")
    assert cli("train", f"resume={tmp_path / 'run'}", *more, "average.windows=[20 steps]") == 0
    rows = {row["step"]: row for row in metrics(tmp_path / "run") if "val_loss" in row}
    # The window that began before it was asked for is none.
    assert [step for step, row in rows.items() if "val_loss_window_20" in row] == [40]
    off = ("schedule.total=50 steps", "average.windows=[]")
    assert cli("train", f"resume={tmp_path / 'run'}", *off) == 0
    assert "average" not in tensors(tmp_path / "run", 50)


def test_a_branch_goes_on_with_its_parents(train: Train, cli: Train, tmp_path: Path) -> None:
    """A constant branch at the same rate is the trunk itself, so its averages are the trunk's."""
    assert (
        train(
            tmp_path / "trunk", *ON, "checkpoint.keep_every=15 steps", "checkpoint.every=15 steps"
        )
        == 0
    )
    asked = ("at=[15 steps]", "cooldown.length=0 steps")
    assert cli("branch", "apply", f"parent={tmp_path / 'trunk'}", *asked) == 0
    (branch,) = (p for p in tmp_path.iterdir() if p.name.startswith("trunk."))
    assert_same_bits(tensors(tmp_path / "trunk", 40), tensors(branch, 40))


def test_a_mean_of_checkpoints_as_a_branch(train: Train, cli: Train, tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    assert train(trunk) == 0
    asked = ("branch", "apply", f"parent={trunk}", "kind=average", "at=[30 steps]", "of=3")
    assert cli(*asked) == 0
    branch = tmp_path / "trunk.30-30.mean-3x10"
    (row,) = metrics(branch)
    assert row["step"] == 30
    assert row["tokens"] == next(r["tokens"] for r in metrics(trunk) if r["step"] == 30)
    made = tensors(branch, 30)
    sources = [tensors(trunk, step)["model"] for step in (10, 20, 30)]
    for name, value in made["model"].items():
        mean = torch.stack([s[name].double() for s in sources]).mean(0).float()
        assert torch.equal(value, mean), name
    assert all(float(s.abs().max()) == 0 for m in made["optimizer"].values() for s in m.values())
    before = (branch / "run.json").read_text()
    assert cli(*asked) == 0
    assert (branch / "run.json").read_text() == before
    # It can be branched from like any other run.
    assert cli("branch", "apply", f"parent={branch}", "at=[30 steps]", "cooldown.length=20%") == 0
    assert metrics(tmp_path / "trunk.30-30.mean-3x10.30-37.1-sqrt")[-1]["step"] == 37
    assert cli("tree", str(tmp_path)) == 0
    assert cli("report", str(tmp_path)) == 0


def test_a_plan_of_means_keeps_its_checkpoints(train: Train, cli: Train, tmp_path: Path) -> None:
    plan = "plan=[{kind: average, ends: [40 steps], of: 3, spacing: 7 steps}]"
    few = ("checkpoint.every=0 steps", "checkpoint.keep_every=0 steps", "checkpoint.keep_last=1")
    assert train(tmp_path / "trunk", plan, *few) == 0
    assert cli("branch", "apply", f"parent={tmp_path / 'trunk'}") == 0
    assert metrics(tmp_path / "trunk.40-40.mean-3x7")[-1]["step"] == 40
    pins = sorted(p.name.split("-")[0] for p in (tmp_path / "trunk" / "pins").iterdir())
    assert pins == ["000026", "000033", "000040"]


@pytest.fixture
def trunk(train: Train, tmp_path: Path) -> Path:
    """A run of 30 steps with checkpoints at 10, 20 and 30."""
    assert train(tmp_path / "trunk", "schedule.total=30 steps") == 0
    return tmp_path / "trunk"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("at=[30 steps]", "of=1"), "of: "),
        (("at=[30 steps]", "of=4"), "reaches back to step 0, but"),
        (("at=[30 steps]", "spacing=10%"), "spacing: '10%' of the run would change"),
        (("at=[30 steps]", "cooldown.length=30%"), "cooldown: means nothing with kind=average"),
        (("at=[30 steps]", "optimizer.lr=1e-4"), "optimizer.lr: a branch with kind=average trains"),
        (("at=[30 steps]", "of=2", "spacing=7 steps"), "has no checkpoint at step 23"),
    ],
)
def test_refused_means(
    trunk: Path, cli: Train, capsys: Any, asked: tuple[str, ...], message: str
) -> None:
    tmp_path = trunk.parent
    before = sorted(p.name for p in tmp_path.iterdir())
    assert cli("branch", "apply", f"parent={tmp_path / 'trunk'}", "kind=average", *asked) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_on_two_ranks(zygote: Zygote, train: Train, cache: Path, tmp_path: Path) -> None:
    """Cut over two ranks they give the losses of one process; a mean is made by two as well."""
    base = ["experiment=tiny", f"--config-dir={CONF}", f"data.cache={cache}", *ON]
    base += ["schedule.total=20 steps"]
    zygote.train(1, *base, f"run.dir={tmp_path / 'one'}")
    zygote.train(2, *base, f"run.dir={tmp_path / 'two'}")
    one, two = ([r for r in metrics(tmp_path / n) if "val_loss" in r] for n in ("one", "two"))
    assert [r.keys() for r in one] == [r.keys() for r in two]
    for row, other in zip(one, two, strict=True):
        assert {k: pytest.approx(v, rel=1e-4) for k, v in row.items()} == other


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_zero(
    stage: int, zygote: Zygote, deepspeed_zygote: Zygote, cache: Path, tmp_path: Path
) -> None:
    """Losses of averages as with one process; a mean as well; FSDP2 goes on where ZeRO stopped."""
    base = ["experiment=tiny", f"--config-dir={CONF}", f"data.cache={cache}", *ON]
    zero = ["engine=deepspeed", f"engine.zero_stage={stage}", "schedule.total=14 steps"]
    zygote.train(1, *base, f"run.dir={tmp_path / 'one'}", "schedule.total=20 steps")
    deepspeed_zygote.train(2, *base, *zero, f"run.dir={tmp_path / 'two'}")
    more = ("engine=fsdp", "schedule.total=20 steps")
    zygote.train(2, f"resume={tmp_path / 'two'}", *more)
    one, two = (
        {r["step"]: r for r in metrics(tmp_path / n) if "val_loss" in r} for n in ("one", "two")
    )
    for step in (10, 20):
        assert {k: pytest.approx(v, rel=1e-4) for k, v in one[step].items()} == two[step]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_stopped_and_resumed(
    stage: int, deepspeed_zygote: Zygote, cache: Path, tmp_path: Path
) -> None:
    """To the last bit, and the parameters are those of a run without averages."""
    base = ["experiment=tiny", f"--config-dir={CONF}", f"data.cache={cache}"]
    base += ["engine=deepspeed", f"engine.zero_stage={stage}"]
    to_24, to_13 = "schedule.total=24 steps", "schedule.total=13 steps"
    deepspeed_zygote.train(2, *base, *ON, f"run.dir={tmp_path / 'whole'}", to_24)
    deepspeed_zygote.train(2, *base, *ON, f"run.dir={tmp_path / 'parts'}", to_13)
    deepspeed_zygote.train(2, f"resume={tmp_path / 'parts'}", to_24)
    whole = tensors(tmp_path / "whole", 24)
    assert_same_bits(whole, tensors(tmp_path / "parts", 24))
    deepspeed_zygote.train(2, *base, f"run.dir={tmp_path / 'without'}", to_24)
    assert whole.pop("average")
    assert_same_bits(whole, tensors(tmp_path / "without", 24))


@pytest.mark.slow
def test_zero_means(
    cli: Train, train: Train, deepspeed_zygote: Zygote, cache: Path, tmp_path: Path
) -> None:
    """Two ranks of ZeRO make the same mean as one process."""
    assert train(tmp_path / "trunk", "schedule.total=20 steps") == 0
    asked = (f"parent={tmp_path / 'trunk'}", "kind=average", "at=[20 steps]", "of=2")
    assert cli("branch", "apply", *asked) == 0
    made = tmp_path / "trunk.20-20.mean-2x10"
    made.rename(tmp_path / "one")
    assert cli("branch", "apply", *asked, "cluster.jobs=0") == 0
    zero = ("engine=deepspeed", "engine.zero_stage=3")
    deepspeed_zygote.train(2, f"resume={made}", *zero)
    one, two = tensors(tmp_path / "one", 20), tensors(made, 20)
    assert_same_bits(one["model"], two["model"])
    assert_same_bits(one["optimizer"], two["optimizer"])
