"""A small study really trained: what it equals, what a second command does, how it goes on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import compose_command
from llm_pretrain.errors import guarded
from llm_pretrain.records import Parent
from llm_pretrain.runs import Run
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.study.budget import budget
from llm_pretrain.study.config import StudyArgs
from llm_pretrain.study.expand import Stem, stems
from llm_pretrain.study.reconcile import survey
from llm_pretrain.study.results import collect
from llm_pretrain.study.savings import savings
from tests.support import CONF, ROOT, metrics, tiny

Cli = Callable[..., int]
Apply = Callable[..., int]
SVG = "{http://www.w3.org/2000/svg}"
LONGER = "study.horizons=[10 steps, 15 steps, 20 steps, 25 steps]"


@pytest.fixture(scope="module")
def place(corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs/tiny, in which everything has been trained once."""
    here = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_CORPUS", str(corpus))
        patch.chdir(here)
        assert run("apply", cache) == 0
        yield here


@pytest.fixture
def study(
    place: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """study(ACTION, KEY=VALUE, ...) in that folder."""
    monkeypatch.setenv("TINY_CORPUS", str(corpus))
    monkeypatch.chdir(place)
    return lambda action, *overrides: run(action, cache, *overrides)


def run(action: str, cache: Path, *overrides: str) -> int:
    """The exit code of `llm-pretrain study ACTION` on the tiny study."""
    from llm_pretrain.cli import dispatch

    where = ["study=tiny", f"--config-dir={CONF}", f"data.cache={cache}"]
    return guarded(dispatch, ["study", action, *where, *overrides])


def expanded(*overrides: str) -> list[Stem]:
    """The runs of the tiny study."""
    asked = compose_command("study", ["study=tiny", *overrides], StudyArgs, CONF)
    return stems(asked.study, asked.overrides, CONF)


def content(place: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_every_run_is_there(study: Apply, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("plan") == 0
    printed = capsys.readouterr().out
    assert "apply would start 0 runs now" in printed
    assert "(measured speed)" in printed
    assert {p.name for p in Path("runs/tiny").iterdir() if p.is_dir()} == {
        f"{size}-{rest}"
        for size in ("small", "large")
        for rest in (
            "constant-s0",
            "constant-s0.8-10.1-sqrt",
            "constant-s0.12-15.1-sqrt",
            "constant-s0.16-20.1-sqrt",
            "cosine-20-s0",
        )
    }


def test_again_changes_nothing(study: Apply, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(Path("runs"))
    assert study("apply") == 0
    assert content(Path("runs")) == before
    assert capsys.readouterr().out.splitlines()[-1] == "10 finished"


def test_it_is_what_one_would_do_by_hand(
    study: Apply, cli: Cli, tmp_path: Path, cache: Path
) -> None:
    here = tmp_path / "trunk"
    plan = 'plan=[{ends: ["15 steps"], cooldown: {length: "20%"}}]'
    asked = tiny(here, f"data.cache={cache}", "schedule.total=20 steps", "eval.every=5 steps", plan)
    asked += ["average.every=1 steps", "average.windows=[5 steps]"]
    assert cli("train", *asked) == 0
    assert cli("branch", "apply", f"parent={here}") == 0
    branch = tmp_path / "trunk.12-15.1-sqrt"
    ours = Path("runs/tiny/small-constant-s0.12-15.1-sqrt")
    assert metrics(ours) == metrics(branch)
    cosine = tmp_path / "cosine"
    decays = ["schedule=cosine", "schedule.warmup=5 steps", "schedule.total=20 steps"]
    asked = tiny(cosine, f"data.cache={cache}", "eval.every=5 steps", *decays, "optimizer.lr=6e-3")
    assert cli("train", *asked) == 0
    assert metrics(Path("runs/tiny/small-cosine-20-s0")) == metrics(cosine)


def test_results(study: Apply) -> None:
    found = collect(expanded())
    assert not found.excluded
    trunk = {
        row["step"]: row
        for row in metrics(Path("runs/tiny/small-constant-s0"))
        if "val_loss" in row
    }
    branch = metrics(Path("runs/tiny/small-constant-s0.12-15.1-sqrt"))[-1]
    cells = {key: losses[0] for key, losses in found.cells.items()}
    assert cells["small", "swa", 15] == trunk[15]["val_loss_window_5"]
    assert cells["small", "wsd", 15] == branch["val_loss"]
    assert len(cells) == 2 * (3 + 3 + 1)
    (point,) = [p for p in found.points("cosine") if p.size == "small"]
    tokens, sequence = 20 * 8 * 32, 32
    # 2 blocks of 4 matrices of 32 x 32 and 3 of 32 x 64, a head of 512; attention a full square.
    products = 2 * (2 * (4 * 32 * 32 + 3 * 32 * 64) + 4 * 32 * sequence) + 2 * 32 * 512
    assert (point.tokens, point.flops) == (tokens, 3 * products * tokens)


def test_what_is_counted_is_a_choice(study: Apply, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {p.run: p for p in collect(expanded()).points("wsd")}
    other = Counting(embedding="left-out", attention="causal")
    for point in collect(expanded(), other).points("wsd"):
        assert whole[point.run].params - point.params == 512 * 32
        # Of 32 keys a token attends to 33 / 2 on average: queries of 32 channels in 2 blocks.
        saved = 3 * 2 * 4 * 32 * (32 - 33 / 2)
        assert whole[point.run].flops - point.flops == saved * point.tokens
    assert study("fit", "--embedding", "left-out", "--attention=causal") == 2
    assert "without the embedding. C: counted product by product, attention with unmasked" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert study("fit", "--embedding", "none") == 2


def test_savings_are_counted_from_the_runs(study: Apply) -> None:
    """Of the study as asked: what else is in the folder is not its own."""
    asked = expanded()
    found = savings(asked, collect(asked).runs)
    assert found is not None
    (wsd,) = found.saved
    assert (wsd.label, wsd.trunks, wsd.cooldowns) == ("wsd", 2, 6)
    assert wsd.needed.tokens == 2 * (16 + 2 + 3 + 4) * 8 * 32
    assert wsd.flops_ratio == pytest.approx(25 / 45, rel=1e-12)
    # Beside them: four steps of each trunk for its averages, and two cosines.
    assert found.everything.tokens == 2 * (20 + 9 + 20) * 8 * 32
    assert wsd.time_ratio is not None
    fewer = expanded("~study.sizes.large", "study.horizons=[10 steps, 20 steps]")
    less = savings(fewer, collect(fewer).runs, causal=True)
    assert less is not None
    assert less.saved[0].flops_ratio == pytest.approx((16 + 2 + 4) / 30, rel=1e-12)
    assert less.everything.tokens == (20 + 2 + 4 + 20) * 8 * 32
    # Of 32 keys a token attends to 33 / 2 on average: queries of 32 channels in 2 blocks.
    full = savings(fewer, collect(fewer).runs)
    assert full is not None
    saved = full.everything.flops - less.everything.flops
    assert saved == 3 * 2 * 4 * 32 * (32 - 33 / 2) * less.everything.tokens


def test_pinned_steps_of_the_trunk_are_there(study: Apply) -> None:
    for size in ("small", "large"):
        trunk = Run.open(Path(f"runs/tiny/{size}-constant-s0"))
        assert trunk.pinned() == {8, 12, 16}
        assert {8, 12, 16} <= set(CheckpointStore(trunk.checkpoints).steps())


def test_fit_and_report(study: Apply, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert study("fit") == 2, "no law of wsd"
    printed = capsys.readouterr().out
    assert "No law of wsd" in printed
    assert printed.count("too few points for a law") == 2, "once for the same reason"
    assert "took 0.556 of the FLOPs" in printed
    assert study("fit", "--json") == 2
    data = json.loads(capsys.readouterr().out)
    assert len(data["losses"]) == 14
    own = [one for one in data["losses"] if one["run"].startswith("small-constant-s0.")]
    row = next(line for line in printed.splitlines() if line.startswith("│ wsd"))
    assert row.split()[3::2] == [f"{one['loss']:.4f}" for one in own]
    page, figure = tmp_path / "page.html", tmp_path / "losses.svg"
    assert study("report", "--out", str(page), "--figure", str(figure)) == 0
    drawn = ElementTree.parse(figure).getroot()
    words = {"".join(element.itertext()).strip() for element in drawn.iter(f"{SVG}text")}
    assert {"wsd", "swa", "cosine", "small", "large"} <= words
    assert study("report", "--out", str(page), "--figure", "/proc/losses.svg") == 2
    assert "--figure: /proc/losses.svg cannot be written" in capsys.readouterr().err
    text = page.read_text()
    for part in ('id="losses"', 'id="no-law"', 'id="savings"', 'id="runs"', "small-cosine-20-s0"):
        assert part in text
    assert "https://" not in text.partition("</script>")[2]


def test_another_run_in_its_place_is_refused(
    study: Apply, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(Path("runs"))
    assert study("apply", "optimizer.lr=1e-3") == 2
    printed = capsys.readouterr().err
    assert "small-constant-s0 is another run" in printed
    assert "optimizer.lr: 0.003 -> 0.001" in printed
    assert content(Path("runs")) == before


def test_only_what_the_study_would_train_is_measured(
    study: Apply, capsys: pytest.CaptureFixture[str]
) -> None:
    found = collect(expanded("optimizer.lr=1e-3", "model.qk_norm=true"))
    assert (found.measured, found.runs) == ((), ())
    reasons = {one.run: one.reason for one in found.excluded}
    changed = "model.qk_norm: False -> True; optimizer.lr: 0.003 -> 0.001"
    assert reasons["small-constant-s0.12-15.1-sqrt"] == f"another run: {changed}"
    assert reasons["small-constant-s0 at step 15 (swa)"] == f"another run: {changed}"
    (reason,) = {one.reason for one in collect(expanded("eval.sequences=7")).excluded}
    assert reason == "evaluated on other text: eval.sequences: 20 -> 7"
    assert study("fit", "optimizer.lr=1e-3") == 2
    said = capsys.readouterr().err
    assert (
        "small-cosine-20-s0, large-cosine-20-s0: another run: optimizer.lr: 0.006 -> 0.002" in said
    )
    assert "train it with llm-pretrain study apply study=tiny" in said


def test_a_branch_of_another_trunk_is_not_the_studys(study: Apply) -> None:
    branch = Run.open(Path("runs/tiny/small-constant-s0.12-15.1-sqrt"))
    link = branch.record.parent
    assert link is not None
    branch.update(parent=Parent("elsewhere", link.step))
    try:
        (one,) = collect(expanded()).excluded
    finally:
        branch.update(parent=link)
    assert one.run == branch.path.name
    assert one.reason == f"another run: its parent: elsewhere -> {link.run}"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("small-constant-s0", "run.json"),
        ("small-constant-s0.12-15.1-sqrt", "run.json"),
        ("small-constant-s0.12-15.1-sqrt", "config.yaml"),
        ("small-constant-s0", "metrics.jsonl"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(
    study: Apply, capsys: pytest.CaptureFixture[str], name: str, file: str
) -> None:
    broken = Path("runs/tiny", name, file)
    kept = broken.read_bytes()
    broken.write_bytes(b"{\n")
    try:
        assert study("plan") == (2 if file == "metrics.jsonl" else 0), "without it, no speed"
        printed = capsys.readouterr()
        assert study("fit") == 2
        fitted = capsys.readouterr().out
        excluded = collect(expanded()).excluded
        if file != "metrics.jsonl":
            assert study("apply") == 2
            assert file in capsys.readouterr().err
    finally:
        broken.write_bytes(kept)
    assert f"{name}/{file}" in printed.out + printed.err
    assert {one.run.partition(" ")[0] for one in excluded} == {name}
    assert all(file in one.reason for one in excluded)
    assert f"left out: {name}" in fitted
    assert "of the FLOPs" in fitted, "what those saved that can be read"


def test_its_folder_names_a_study(
    study: Apply, capsys: pytest.CaptureFixture[str], cli: Cli, tmp_path: Path
) -> None:
    where = f"--config-dir={CONF}"
    assert study("fit") == 2
    asked = capsys.readouterr().out
    assert cli("study", "fit", "runs/tiny", where) == 2
    assert capsys.readouterr().out == asked
    copy = tmp_path / "copy"
    shutil.copytree("runs/tiny", copy, symlinks=True)
    assert cli("study", "fit", str(copy), where) == 2
    assert capsys.readouterr().out == asked.replace("tiny, ", "copy, ")
    more = ["study.horizons=[10 steps, 40 steps]", "~study.sizes.large"]
    assert cli("study", "plan", str(copy), where, *more) == 0
    printed = capsys.readouterr().out
    assert "small-constant-s0.32-40" in printed
    assert "large" not in printed
    assert cli("study", "plan", str(tmp_path), where) == 2
    assert "has no study.yaml; a new study is asked for as study=NAME" in capsys.readouterr().err


def test_what_is_left_is_counted_from_the_steps_done(study: Apply) -> None:
    def left(*overrides: str) -> int:
        found = budget(survey(expanded(*overrides)), lambda config: config.cluster)
        return sum(line.tokens_left for line in found.lines)

    step = 8 * 32
    assert left() == 0
    # Each trunk goes from 20 to 25, a branch from 20 to 25, and a cosine is new.
    assert left(LONGER) == 2 * (5 + 5 + 25) * step
    run = Run.open(Path("runs/tiny/large-cosine-20-s0"))
    run.update(state="interrupted", step=18)
    try:
        assert left() == 2 * step
    finally:
        run.update(state="finished", step=20)


def test_a_later_horizon_prolongs_the_trunk_and_trains_new_branches_only(
    study: Apply, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(Path("runs/tiny"))
    old = {p for p in Path("runs/tiny").iterdir() if p.is_dir()}
    only = ["study.methods.cosine.only=longest", LONGER]
    assert study("plan", *only) == 0
    assert "apply would start 6 runs now" in capsys.readouterr().out
    assert study("apply", *only) == 0
    new = {p.name for p in Path("runs/tiny").iterdir() if p.is_dir()} - {p.name for p in old}
    assert new == {
        f"{size}-{rest}"
        for size in ("small", "large")
        for rest in ("constant-s0.20-25.1-sqrt", "cosine-25-s0")
    }
    after = content(Path("runs/tiny"))
    for path, text in before.items():
        touched = any(f"{size}-constant-s0/" in path for size in ("small", "large"))
        if not touched and not path.endswith("study.yaml"):
            assert after[path] == text, path
    trunk = Run.open(Path("runs/tiny/small-constant-s0"))
    assert (trunk.status, trunk.record.step) == ("finished", 25)
    rows = [row["step"] for row in metrics(trunk.path) if "loss" in row]
    assert rows == list(range(1, 26))
    assert len(trunk.record.sessions) == 2
    # The study as it was before is still all there.
    assert study("apply") == 0
    assert schedule_of(Run.open(trunk.path).config).total == 25


def test_a_run_that_is_not_there_is_named(study: Apply, tmp_path: Path) -> None:
    found = collect(expanded("study.seeds=[0,7]"))
    assert {one.reason for one in found.excluded} == {"not started"}
    assert len(found.excluded) == 14
    assert any("s7" in one.run for one in found.excluded)


def test_a_diverged_or_unfinished_run_is_named(
    study: Apply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(Path("runs/tiny/large-cosine-20-s0"))
    kept = run.metrics_path.read_text()
    try:
        cut = [line for line in kept.splitlines() if '"val_loss"' not in line]
        run.metrics_path.write_text("".join(f"{line}\n" for line in cut))
        (one,) = collect(expanded()).excluded
        assert (one.run, one.reason) == ("large-cosine-20-s0", "not evaluated there")
        run.update(state="failed", reason="the loss is nan at step 9", step=9)
        (one,) = collect(expanded()).excluded
        assert one.reason == "unfinished: failed at step 9 of 20 (the loss is nan at step 9)"
    finally:
        run.metrics_path.write_text(kept)
        run.update(state="finished", reason=None, step=20)


def test_survey_of_a_trunk_that_is_being_trained(study: Apply) -> None:
    """A new plan waits for it; nothing is submitted or changed meanwhile."""
    trunk = Run.open(Path("runs/tiny/small-constant-s0"))
    longest = "study.horizons=[10 steps, 40 steps]"
    with trunk.hold():
        state = trunk.record.state
        trunk.update(state="running")
        try:
            standing = next(s for s in survey(expanded(longest)) if s.stem.path == trunk.path)
        finally:
            trunk.update(state=state)
    assert (standing.action, standing.status) == ("wait", "running")
    assert "apply again" in standing.reason


def test_two_shapes_share_the_trunk() -> None:
    (stem, *_) = expanded("study.methods.constant.cooldowns.linear={length: 20%, shape: linear}")
    assert [b.path.name.rpartition(".")[2] for b in stem.branches] == ["1-sqrt"] * 3 + [
        "linear"
    ] * 3
    assert {r.label for r in stem.results} == {"wsd", "linear", "swa"}


def test_two_commands_at_once_train_every_run_once(study: Apply, cache: Path) -> None:
    """Real processes; the one that finds a run in the other's hands leaves it there."""
    asked = ["study=tiny", f"--config-dir={CONF}", f"data.cache={cache}", "study.name=twice"]
    asked += ["study.sizes.large=null", "study.methods.constant=null", "cluster.jobs=1"]
    asked += ["study.methods.cosine.only=all", "study.horizons=[10 steps, 15 steps]"]
    command = [sys.executable, "-m", "llm_pretrain.cli", "study", "apply", *asked]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pair = [subprocess.Popen(command, env=environment) for _ in range(2)]
    for process in pair:
        process.wait()
    found = [Run.open(path.parent).record for path in Path("runs/twice").glob("*/run.json")]
    assert sorted((r.name, r.state, len(r.sessions)) for r in found) == [
        ("small-cosine-10-s0", "finished", 1),
        ("small-cosine-15-s0", "finished", 1),
    ]
