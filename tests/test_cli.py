"""The command line: help without torch, suggestions, Hydra's flags, multirun, export."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import CONF, ROOT, command, metrics, record, tiny

Train = Callable[..., int]
HEAVY = ("torch", "datasets", "wandb", "plotly", "transformers", "submitit", "scipy", "matplotlib")
COMMANDS = (
    *("train", "branch", "status", "tree", "report", "study", "export", "average", "import"),
    *("estimate", "bench", "preflight", "schedule", "theory", "reanalyse", "laws"),
)
ACTIONS = (
    *("branch plan", "branch apply", "branch watch", "schedule show", "laws fit", "laws compare"),
    *(f"study {action}" for action in ("plan", "apply", "watch", "fit", "report")),
    *(f"theory {action}" for action in ("bound", "transfer", "extend", "compare")),
)
BARE = ("train", "estimate", "bench", "preflight")
"""Commands that do something without arguments."""


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import llm_pretrain",
        "from llm_pretrain.cli import dispatch; dispatch(['--version'])",
        "from llm_pretrain.errors import guarded; from llm_pretrain.cli import dispatch;"
        " assert guarded(dispatch, ['train', 'optimizer.lrr=1']) == 2",
        "import llm_pretrain.schedule.schedule, llm_pretrain.branch.command, llm_pretrain.runs",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not modules_after(code).intersection(HEAVY)


def test_no_help_imports_anything_heavy() -> None:
    """All in one process, the one after the other, so that what is found names who brought it."""
    asks = [[*line.split(), "--help"] for line in ("", *COMMANDS, *ACTIONS)]
    script = (
        "import sys; from llm_pretrain.cli import dispatch\n"
        f"for ask in {asks}:\n"
        "    assert dispatch(ask) == 0, ask\n"
        f"    heavy = sys.modules.keys() & set({HEAVY})\n"
        "    assert not heavy, (ask, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_may_leave_before_the_end_of_a_help() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    asks = [sys.executable, "-m", "llm_pretrain.cli", "import", "--help"]
    done = subprocess.run(asks, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_names_every_command(cli: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--help") == 0
    said = capsys.readouterr().out
    assert cli() == 0
    assert capsys.readouterr().out == said
    named = {line.split()[1] for line in said.splitlines() if line.startswith("  llm-pretrain ")}
    assert named == set(COMMANDS)
    assert cli("nothing") == 2
    offered = capsys.readouterr().err.partition("valid: ")[2]
    assert offered.strip().split(", ") == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_of_its_own(
    command: str, cli: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(command, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: llm-pretrain {command}")
    assert max(map(len, said.splitlines())) <= 100
    assert cli(command, "some=thing", "-h") == 0
    assert capsys.readouterr().out == said
    if command not in BARE:
        assert cli(command) == 0
        assert capsys.readouterr().out == said


def test_help_names_every_field(cli: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "optimizer.lr=0.001 Peak learning rate" in out
    assert "paper/124m" in out
    assert cli("branch", "--help") == 0
    assert "Horizons: with a 20% cooldown" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_command_suggests_the_right_one(
    cli: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("trian") == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert cli("branch", "aply", "parent=x") == 2
    assert "did you mean 'apply'?" in capsys.readouterr().err


def test_cfg_job_prints_the_whole_config() -> None:
    done = command("train", "experiment=demo", "optimizer.lr=2e-3", "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["optimizer"]["lr"] == 2e-3
    assert shown["run"]["dir"] == "runs/demo"
    assert shown["eval"].keys() >= {"every", "sequences"}


def test_cfg_hydra_and_info_work() -> None:
    assert "searchpath" in command("train", "--cfg", "hydra").stdout
    assert "Defaults Tree" in command("train", "--info", "defaults-tree").stdout


@pytest.mark.slow
def test_multirun_gives_one_directory_each(tmp_path: Path, tiny_corpus: Path, cache: Path) -> None:
    """Two at a time; the README's, one after the other, is run with its other commands."""
    arguments = [a for a in tiny(tmp_path) if not a.startswith("run.dir")]
    done = command(
        "train", "--multirun", *arguments, f"run.root={tmp_path}", f"data.cache={cache}",
        "schedule.total=8 steps", "optimizer.lr=1e-3,2e-3", "cluster.jobs=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
    assert names == {"tiny.optimizer.lr=0.001", "tiny.optimizer.lr=0.002"}
    for name in names:
        assert record(tmp_path / name)["state"] == "finished"
        assert "step 8/8" in (tmp_path / name / "jobs" / "local.log").read_text()
    rates = {metrics(tmp_path / name)[-2]["lr"] for name in names}
    assert rates == {1e-3, 2e-3}


def test_a_multirun_with_one_bad_value_starts_nothing(tmp_path: Path, tiny_corpus: Path) -> None:
    arguments = [a for a in tiny(tmp_path) if not a.startswith("run.dir")]
    done = command("train", "-m", *arguments, f"run.root={tmp_path}", "optimizer.lr=1e-3,-1")
    assert done.returncode == 2
    assert "optimizer.lr: got -1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_module_entry_takes_the_same_arguments(
    tmp_path: Path, tiny_corpus: Path, cache: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_pretrain.train",
         *tiny(tmp_path / "run", f"data.cache={cache}", "schedule.total=6 steps")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "run")["state"] == "finished"


def test_other_settings_get_a_place_of_their_own(
    tiny_corpus: Path, cache: Path, tmp_path: Path, cli: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["train", "experiment=tiny", f"--config-dir={CONF}", f"run.root={tmp_path}"]
    ask += [f"data.cache={cache}", "schedule.total=6 steps"]
    assert cli(*ask) == 0
    assert cli(*ask, "optimizer.lr=1e-3") == 0
    out = capsys.readouterr().out
    assert "has other settings (optimizer.lr: 0.003 -> 0.001): this run is" in out
    runs = sorted(p for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert [run.name[:5] for run in runs] == ["tiny", "tiny."]
    assert cli(*ask, "optimizer.lr=1e-3") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert sorted(p for p in tmp_path.iterdir() if not p.name.startswith(".")) == runs
    assert cli(*ask, "optimizer.lr=1e-3", "run.name=tiny") == 2


def test_export_opens_in_transformers(train: Train, cli: Train, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    assert train(tmp_path / "run", "schedule.total=10 steps") == 0
    assert cli("export", str(tmp_path / "run"), str(tmp_path / "hf"), "step=10") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "hf" / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("abc def ghij")])
    loss = model(ids, labels=ids).loss
    assert 4 < loss.item() < 8
    assert cli("export", str(tmp_path / "run"), str(tmp_path / "hf")) == 2
    assert cli("export", str(tmp_path / "run"), str(tmp_path / "hf2"), "step=7") == 2
