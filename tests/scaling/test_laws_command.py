"""`llm-pretrain laws` as a person runs it, and the committed page against what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded
from llm_pretrain.reanalyse.words import SOURCE
from llm_pretrain.scaling import findings
from llm_pretrain.scaling.compare import SHARE, Comparison, compare
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.figure import draw
from llm_pretrain.scaling.read import read
from tests.scaling.known import points

HERE = Path(__file__).parent
PUBLISHED = HERE / "published.json"
DOCS = HERE.parents[1] / "docs"
_NUMBER = re.compile(r"[\u2212+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?")


def run(*arguments: object) -> int:
    """The exit code of the command, in this process."""
    return guarded(dispatch, ["laws", *map(str, arguments)])


@pytest.fixture(scope="module")
def found() -> Comparison:
    """What `laws compare` finds in the excerpt."""
    table = read([PUBLISHED], Counting())
    return compare(table.points, table.excluded, share=SHARE)


def table(folder: Path) -> Path:
    """Runs of two sources as CSV."""
    own = [*points(noise=0.001), *points(noise=0.001, seed=1, source="cosine")]
    lines = [f"{p.params:.0f},{p.tokens:.0f},{p.loss:.6f},{p.source},{p.run}" for p in own]
    lines.append("1e8,2e9,nan,cosine,broken")
    path = folder / "runs.csv"
    path.write_text("params,tokens,loss,source,run\n" + "\n".join(lines) + "\n")
    return path


def test_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "laws.html"
    assert run("fit", table(tmp_path), "--budget", "1e20,1e21", "--out", page) == 0
    said = capsys.readouterr().out
    for text in (
        "Law of cooldown",
        "Law of cosine",
        "left out: broken: its loss is NaN",
        "FLOPs: C = 6 N D.",
        "1e+21 FLOPs by the law (approach 3): N 1.",
        "by IsoFLOP minima (approach 2)",
        "times the largest run's",
    ):
        assert text in said
    written = page.read_text()
    assert written.count('class="plotly-graph-div"') == 6
    assert '<section id="law-1">' in written
    assert "left out: broken: its loss is NaN" in written


def test_fit_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", table(tmp_path), "--json", "--budget=1e21") == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert set(data["laws"]) == {"cooldown", "cosine"}
    law = data["laws"]["cooldown"]["parametric"]
    assert law["alpha"]["low"] < 0.34 < law["alpha"]["high"]
    assert len(data["laws"]["cooldown"]["points"]) == 40
    assert data["laws"]["cosine"]["excluded"] == [{"run": "broken", "reason": "its loss is NaN"}]
    assert [one["method"] for one in data["optima"]["cosine"]] == [
        "parametric",
        "envelope",
        "isoflop",
    ]


def test_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = points(sizes=[1e8], ratios=[2, 5, 10, 20, 50])
    lines = "".join(f"{p.params},{p.tokens},{p.loss}\n" for p in own)
    path = tmp_path / "one.csv"
    path.write_text(f"params,tokens,loss\n{lines}")
    assert run("fit", path) == 0
    said = capsys.readouterr().out
    assert "100M: a law in tokens only" in said
    assert "no law in size and tokens: it needs runs of 3 sizes at least, there is 1 size" in said
    assert "no envelope and no IsoFLOP parabolas" in said
    assert run("fit", path, "--out", tmp_path / "one.html") == 0
    assert run("fit", path, "--budget", "1e20") == 2
    assert "--budget: no law in size and tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti", "a"], "did you mean 'fit'?"),
        (["fit"], "name a file"),
        (["fit", "none.csv"], "none.csv: cannot be read"),
        (["fit", PUBLISHED, "--bugdet", "1"], "did you mean '--budget'?"),
        (["fit", PUBLISHED, "--budget", "much"], "--budget: 'much' is no number of FLOPs"),
        (["fit", PUBLISHED, "--embedding", "no"], "--embedding: 'no'; valid: counted, left-out"),
        (["fit", PUBLISHED, "--attention=half"], "--attention: 'half'; valid: full, causal"),
        (["fit", PUBLISHED, "--figure", "a.svg"], "--figure: of `laws compare`"),
        (["compare", PUBLISHED, "--budget", "1e20"], "--budget: of `laws fit`"),
        (["compare", PUBLISHED, "--out", "no/such.html"], "--out: the folder no does not exist"),
        (["compare", PUBLISHED, "--figure", "a.png"], "--figure: 'a.png' does not end in .svg"),
    ],
)
def test_bad_input(
    arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_table_says_itself_what_it_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", table(tmp_path), "--attention", "causal") == 2
    assert "for published runs only" in capsys.readouterr().err
    lines = [line for line in table(tmp_path).read_text().splitlines() if "cosine" not in line]
    path = tmp_path / "cooldowns.csv"
    path.write_text("\n".join(lines))
    assert run("compare", path) == 2
    assert "no results whose source is cosine" in capsys.readouterr().err


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figure = tmp_path / "c.html", tmp_path / "c.svg"
    assert run("compare", PUBLISHED, "--json", "--out", page, "--figure", figure) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["source"] == [SOURCE]
    written = page.read_text()
    for text in ('<section id="agree">', '<section id="held">', "MIT licence", "diverged"):
        assert text in written
    assert figure.read_text().startswith("<?xml")
    ratios = {one["size"]: one["reused"] / one["scratch"] for one in data["reuse"]}
    # A trunk to 0.8 of the longer length, and two cooldowns of a fifth of their lengths.
    assert ratios["33M"] == pytest.approx((7000 + 0.2 * 3000) / 10_000)
    assert ratios["210M"] == pytest.approx((50_000 + 0.2 * 37_500) / 87_500)


def test_a_size_held_out_is_not_seen(found: Comparison) -> None:
    """Other losses of the largest size leave its prediction where it was."""
    own = read([PUBLISHED], Counting())
    moved = [
        type(p)(**{**vars(p), "loss": p.loss + (0.1 if p.size == "210M" else 0)})
        for p in own.points
    ]
    again = compare(moved, own.excluded, draws=20)
    assert [one.predicted.value for one in again.held] == pytest.approx(
        [one.predicted.value for one in found.held]
    )
    assert {one.source for one in found.held} == {"cooldown", "cosine", "average"}


def test_the_figure_is_the_same_every_time(found: Comparison, tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw(found, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    committed = (DOCS / "scaling-laws.svg").read_text()
    assert "210M from the smaller sizes, 95%" in committed
    assert "<dc:date>" not in committed


def _shape(text: str) -> str:
    return _NUMBER.sub("#", text)


def _close(line: str, ours: str) -> bool:
    """Whether the numbers are equal up to one in the last digit that is printed, or 0.2%."""
    for theirs, own in zip(_NUMBER.findall(line), _NUMBER.findall(ours), strict=True):
        digits, _, power = own.partition("e")
        unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
        there, here = (float(n.replace("\N{MINUS SIGN}", "-")) for n in (theirs, own))
        if here != pytest.approx(there, rel=2e-3, abs=1.01 * unit if "." in own else 0):
            return False
    return True


def test_the_committed_page_says_what_the_command_finds(found: Comparison) -> None:
    """Every sentence and row, with numbers up to what another machine's rounding may change."""
    page = (DOCS / "scaling-laws.md").read_text()
    left = read([PUBLISHED], Counting(embedding="left-out"))
    without = compare(left.points, left.excluded, share=SHARE)
    rows = [
        *findings.parameter_rows(found),
        *findings.difference_rows(found),
        *(findings.held_row(one) for one in found.held),
    ]
    expected = [f"| {' | '.join(row)} |" for row in rows]
    expected += [f"- {text}" for text in findings.paragraphs(found)]
    expected += [f"- {text}" for text in findings.held(without)]
    held = [line for line in page.splitlines() if _shape(line) in set(map(_shape, expected))]
    assert len(held) == len(expected)
    for ours in expected:
        near = [line for line in held if _shape(line) == _shape(ours)]
        assert any(_close(line, ours) for line in near), ours
    assert SOURCE in page
    assert "llm-pretrain laws compare runs.json --figure docs/scaling-laws.svg" in page


def test_what_the_committed_page_says_in_its_own_words(found: Comparison) -> None:
    """The sentences that no function writes."""
    assert max(map(abs, found.gaps)) < 0.01
    laws = {**found.laws, "cosine, all": found.all_cosine}
    for law in laws.values():
        assert law is not None
        assert law.parametric is not None
        assert law.parametric.E.low is None
        assert law.parametric.unsettled == 0
        assert 4 <= law.parametric.deviation / 0.0005 <= 7
        assert not law.excluded
        ends = sorted({(p.params, p.size) for p in law.points})
        reach = [[p.flops for p in law.points if p.size == size] for _, size in ends]
        shared = sum(max(reach[i]) > min(reach[i + 1]) for i in range(len(reach) - 1))
        assert shared == (1 if len(law.points) == 14 else 4)
    assert all(one.predicted.value > one.measured for one in found.held)


def test_help_and_imports() -> None:
    """Help imports no NumPy, and nothing here imports torch."""
    code = (
        "import sys\n"
        "from llm_pretrain.cli import dispatch\n"
        "assert dispatch(['laws', '--help']) == 0\n"
        "assert not {'numpy', 'scipy'} & set(sys.modules)\n"
        "import pkgutil, importlib, llm_pretrain.scaling as own\n"
        "names = [m.name for m in pkgutil.iter_modules(own.__path__)]\n"
        "assert len(names) > 10\n"
        "[importlib.import_module(f'llm_pretrain.scaling.{name}') for name in names]\n"
        "assert 'torch' not in sys.modules\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "--embedding counted|left-out" in found.stdout
