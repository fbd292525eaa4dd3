"""`llm-pretrain theory`: its numbers, its tables, and what it says about bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.config.schema import BranchSpec
from llm_pretrain.duration import Duration, steps
from tests.report.report_family import config, cosine, create
from tests.test_cli import modules_after
from tests.theory.formulas import REFERENCE

Cli = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def answer(cli: Cli, capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert cli("theory", *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_bound(cli: Cli, capsys: Capture) -> None:
    asked = ["bound", "schedule=wsd", "cooldown.length=20%", "steps=4000"]
    found = answer(cli, capsys, *asked)
    assert found["optimal_lr"] == pytest.approx(0.0081182938, rel=1e-5)
    assert found["optimal_bound"] == pytest.approx(0.0342115239, rel=1e-5)
    assert found["bound"] == pytest.approx(found["optimal_bound"])
    assert found["averaged_optimal_bound"] == pytest.approx(0.01635402, rel=1e-5)
    found = answer(cli, capsys, *asked, "lr=0.01", "D=1", "G=1")
    assert found["bound"] == pytest.approx(0.0349575975, rel=1e-5)
    assert found["distance_term"] + found["noise_term"] == pytest.approx(found["bound"])
    found = answer(cli, capsys, "bound", "schedule=constant", "steps=400", "D=2", "G=3", "lr=0.05")
    assert found["bound"] == pytest.approx(1.8026716807, rel=1e-9)


def test_bound_takes_the_fields_of_a_schedule(cli: Cli, capsys: Capture) -> None:
    asked = ["bound", "schedule=wsd", "steps=1k steps", "warmup=50 steps", "cooldown.shape=power"]
    found = answer(cli, capsys, *asked, "cooldown.exponent=0.5", "cooldown.floor=0.1")
    assert (
        found["phases"] == "warmup 0-50, constant 50-800 at 1, cooldown 800-1000 power 0.5 to 0.1"
    )
    asked = ["bound", "schedule=two-stage", "steps=100", "stage.at=30 steps", "stage.factor=0.1"]
    assert answer(cli, capsys, *asked)["phases"].startswith(
        "constant 0-30 at 1, constant 30-80 at 0.1"
    )
    found = answer(
        cli, capsys, "bound", "schedule=wsd", "steps=90", "warmup=9 steps", "warmup_from=0"
    )
    assert found["phases"].startswith("warmup 0-9")


def test_transfer(cli: Cli, capsys: Capture) -> None:
    found = answer(cli, capsys, "transfer", "from=wsd-20%", "to=linear", "lr=1e-3", "steps=6400")
    logarithm = REFERENCE["cooldowns"]["6400_linear_0.2"][2]
    assert found["lr"] == pytest.approx(1e-3 * 2.718281828459045**logarithm, rel=1e-5)
    assert found["to"]["lr"] == found["lr"]
    back = ["transfer", "from=linear", "to=wsd-20%", f"lr={found['lr']}", "steps=6400"]
    assert answer(cli, capsys, *back)["lr"] == pytest.approx(1e-3)
    longer = ["transfer", "from=linear", "to=linear", "lr=1", "steps=100", "to.steps=400"]
    assert answer(cli, capsys, *longer)["lr"] == pytest.approx(0.5, rel=0.02)


def test_extend_a_schedule_by_name(cli: Cli, capsys: Capture) -> None:
    asked = ["extend", "from=wsd-20%", "steps=4000", "lr=1e-3", "to=8000 steps"]
    found = answer(cli, capsys, *asked)
    options = {option["what"]: option for option in found["options"]}
    expected = REFERENCE["extended"]["2"]
    matched = options["lower rate, matched"]
    assert matched["lr"] == pytest.approx(1e-3 * expected["rho_root"], rel=1e-6)
    assert matched["relative_bound"] == pytest.approx(
        expected["omega_adapted"] / expected["omega_same"], rel=1e-3
    )
    assert found["preferred"] == "longer cooldown, matched"
    assert found["new_linear_run"]["bound"] == pytest.approx(expected["omega_linear"], rel=1e-5)


def test_extend_runs(cli: Cli, capsys: Capture, tmp_path: Path) -> None:
    """A trunk, and a cooldown branched from it, in steps and tokens."""
    trunk = create(config(tmp_path, "trunk", 5000))
    spec = BranchSpec(ends=[steps(5000)], cooldown=CooldownConfig(length=Duration.parse("20%")))
    wanted = expand(Origin(trunk.config, trunk.record.id, trunk.path), spec)[0]
    branch = create(wanted.config, wanted.overrides, trunk)
    found = answer(cli, capsys, "extend", f"run={branch.path}", "to=10k steps")
    assert (found["lr"], found["at"]) == (4e-3, 4000)
    assert found["tuned"]["phases"].endswith("cooldown 4000-5000 1-sqrt to 0")
    same = answer(cli, capsys, "extend", f"run={trunk.path}", "to=10k steps", "at=4k steps")
    assert same["options"] == found["options"]
    tokens = answer(cli, capsys, "extend", f"run={branch.path}", f"to={10_000 * 2048} tokens")
    assert tokens["options"] == found["options"]
    asked = ["extend", f"run={trunk.path}", "to=10k steps", "steps=2000", "cooldown.length=10%"]
    found = answer(cli, capsys, *asked, "cooldown.shape=linear", "cooldown.floor=0.1")
    assert found["tuned"]["phases"].endswith("cooldown 1800-2000 linear to 0.0004")
    assert found["options"][0]["cooldown_steps"] == 1000


def test_compare(cli: Cli, capsys: Capture) -> None:
    found = answer(cli, capsys, "compare", "steps=4000", "lr=0.01")
    rows = {row["schedule"]: row for row in found["schedules"]}
    assert {"constant", "wsd-20%", "cosine", "linear", "inverse-sqrt", "two-stage-20%"} < set(rows)
    assert rows["wsd-20%"]["bound"] == pytest.approx(0.0349575975, rel=1e-5)
    assert rows["wsd-20%"]["lr_ratio"] == 1
    bounds = [row["optimal_bound"] for row in found["schedules"]]
    assert bounds == sorted(bounds)
    assert found["schedules"][0]["schedule"] == "best that never rises"
    assert rows["wsd-20%, best shape"]["optimal_bound"] < rows["wsd-20%-1-sqrt"]["optimal_bound"]


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["bound", "schedule=wsd", "steps=400"], ["wsd-20%, 400 steps", "0.0253737", "0.109323"]),
        (
            ["transfer", "from=wsd-20%", "to=cosine", "lr=1e-3", "steps=50000"],
            ["transferred", "0.00188715", "1.8872 times"],
        ),
        (
            ["extend", "from=wsd-20%", "steps=4000", "lr=1e-3", "to=8000 steps"],
            ["* longer cooldown, matched", "5,062 (63.3%)", "0.000533", "repeats steps"],
        ),
        (
            ["compare", "steps=400", "lr=0.05"],
            ["bound at 0.05", "best that never rises", "0.135452"],
        ),
    ],
)
def test_people_get_a_table_and_a_plot(
    cli: Cli, capsys: Capture, arguments: list[str], words: list[str]
) -> None:
    assert cli("theory", *arguments) == 0
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    assert sum("\u2800" < letter <= "\u28ff" for letter in out) > 60


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["bnd"], ["theory bnd", "did you mean 'bound'?"]),
        (["bound"], ["schedule: missing", "schedule=wsd"]),
        (["bound", "schedule=wsd"], ["steps: missing"]),
        (["bound", "schedule=wsdd", "steps=4"], ["schedule", "'wsdd'", "did you mean 'wsd'?"]),
        (["bound", "schedule=wsd", "steps=0"], ["steps: 0"]),
        (["bound", "schedule=wsd", "steps=-4"], ["steps", "'-4'", "50000"]),
        (["bound", "schedule=wsd", "steps=20%"], ["steps: '20%'", "50000"]),
        (["bound", "schedule=wsd", "steps=1000000000"], ["steps", "100,000,000"]),
        (["bound", "schedule=wsd", "steps=4", "lr=abc"], ["lr", "'abc'", "positive number"]),
        (["bound", "schedule=wsd", "steps=4", "lr=nan"], ["lr", "'nan'"]),
        (["bound", "schedule=wsd", "steps=4", "D=-1"], ["D", "'-1'"]),
        (
            ["bound", "schedule=wsd", "steps=400", "cooldown.length=120%"],
            ["error: cooldown.length", "120%", "480 steps", "at most 400"],
        ),
        (
            ["bound", "schedule=wsd", "steps=4", "cooldown.lenght=20%"],
            ["cooldown.lenght", "did you mean 'cooldown.length'?"],
        ),
        (
            ["bound", "schedule=wsd", "steps=4", "cooldown.shape=liner"],
            ["cooldown.shape", "'liner'", "did you mean 'linear'?"],
        ),
        (["bound", "schedule=wsd", "steps=4", "cooldown.floor=2"], ["cooldown.floor", "2"]),
        (["bound", "schedule=wsd", "steps=4", "warmup=10"], ["warmup", "10", "unit"]),
        (["bound", "schedule=wsd", "steps=4", "stage.at=10%"], ["stage.at", "two-stage", "wsd"]),
        (
            ["bound", "schedule=two-stage", "steps=400", "stage.at=90%"],
            ["stages.0", "between 0 and 320"],
        ),
        (["bound", "schedule=wsd", "steps=4", "--jsn"], ["--jsn", "--json"]),
        (["bound", "schedule=wsd", "steps=4", "steps=5"], ["steps", "twice"]),
        (["bound", "wsd"], ["wsd", "key=value"]),
        (["transfer", "from=wsd-20", "to=cosine", "lr=1", "steps=4"], ["from", "write 20%"]),
        (["transfer", "from=wsd", "to=csine", "lr=1", "steps=4"], ["to", "'csine'", "'cosine'"]),
        (["transfer", "from=wsd", "to=cosine", "steps=4"], ["lr: missing"]),
        (["transfer", "from=wsd", "lr=1", "steps=4"], ["to: missing", "to=cosine"]),
        (["extend", "to=4 steps"], ["run: missing", "from="]),
        (["extend", "run=nowhere", "to=4 steps"], ["nowhere", "not a run"]),
        (["extend", "from=wsd", "steps=9", "to=5 tokens"], ["to: '5 tokens'"]),
        (["extend", "from=wsd", "steps=9", "run=a", "to=5 steps"], ["from", "run="]),
        (["extend", "from=wsd", "steps=9", "to=20 steps", "cooldown.floor=1"], ["its own"]),
        (["extend", "from=wsd", "steps=9", "to=9 steps"], ["to: step 9"]),
        (["extend", "from=constant", "steps=99", "to=200 steps", "cooldown.shape=x"], ["'x'"]),
        (["compare"], ["steps: missing"]),
    ],
)
def test_bad_input(cli: Cli, capsys: Capture, arguments: list[str], words: list[str]) -> None:
    assert cli("theory", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_a_cosine_run_cannot_be_carried_on(cli: Cli, capsys: Capture, tmp_path: Path) -> None:
    run = create(cosine(tmp_path, "cosine", 500))
    assert cli("theory", "extend", f"run={run.path}", "to=1000 steps") == 2
    assert "only constant runs" in capsys.readouterr().err


def test_help_is_light(cli: Cli, capsys: Capture) -> None:
    assert cli("theory") == cli("theory", "bound", "--help") == 0
    out = capsys.readouterr().out
    for word in ("bound:", "transfer:", "extend:", "compare:", "stage.at", 'to="200k steps"'):
        assert word in out
    code = "from llm_pretrain.cli import dispatch; dispatch(['theory', '--help'])"
    assert not modules_after(code).intersection(("torch", "scipy", "numpy", "hydra", "rich"))
    code = (
        "from llm_pretrain.cli import dispatch;"
        "dispatch(['theory', 'bound', 'schedule=wsd', 'steps=4'])"
    )
    assert not modules_after(code).intersection(("torch", "scipy"))
