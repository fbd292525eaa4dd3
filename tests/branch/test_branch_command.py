"""The commands about branches, on runs that nobody trained: their options, and what they print."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.branch.branch_family import trunk

Cli = Callable[..., int]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with an option of the user's own."""
    (tmp_path / "my" / "optimizer").mkdir(parents=True)
    (tmp_path / "my" / "optimizer" / "mine.yaml").write_text("lr: 0.5\n")
    return tmp_path / "my"


def test_groups_of_the_users_own(
    cli: Cli, tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trunk(tmp_path / "runs" / "trunk", 3)
    ask = ("at=[140 steps]", "cooldown.length=20 steps", "optimizer=mine")
    assert cli("branch", "plan", f"parent={run.path}", *ask, "--config-dir", str(mine)) == 0
    assert "trunk.140-160.1-sqrt." in capsys.readouterr().out
    assert cli("branch", "plan", f"parent={run.path}", *ask) == 2
    assert "optimizer=mine: unknown" in capsys.readouterr().err
    # A resume knows it, too, and therefore says what it would change.
    assert cli("train", f"resume={run.path}", "optimizer=mine", f"--config-dir={mine}") == 2
    assert "-> 0.5" in capsys.readouterr().err
    assert cli("schedule", "show", str(run.path), "optimizer=mine", f"--config-dir={mine}") == 0
    assert "0.5 - 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("branch", "plan", "parent=x", "--fast"), "--fast: branch plan has no such option"),
        (("branch", "watch", "x", "--evry", "3"), "did you mean '--every'?"),
        (("branch", "plan", "parent=x", "--every", "3"), "--every: branch plan has no such option"),
        (("branch", "plan", "parent="), "parent: missing"),
        (("status", "--all"), "--all: status has no such option"),
        (("tree", "a", "b"), "tree: takes one folder that holds runs, or one run; got a b"),
    ],
)
def test_bad_options(
    arguments: tuple[str, ...], message: str, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_rows_stay_in_one_line_in_a_pipe(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trunk(tmp_path / f"a-{'very-' * 15}long-name", 1)
    for command in ("status", "tree"):
        assert cli(command, str(tmp_path)) == 0
        (line,) = [x for x in capsys.readouterr().out.splitlines() if "created" in x]
        assert run.path.name in line or command == "tree"
        assert "0/1000000" in line
    assert cli("branch", "plan", f"parent={run.path}") == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("│")]
    assert f"{run.path.name}.70-90" in line
