"""What preflight takes from a person, and what it leaves for programs."""

from collections.abc import Callable

import pytest

from launch.preflight.facts import Absent
from launch.preflight.report import Report
from tests.launch.evidence import evidence, ill

KEYS = {
    "": "schema fit summary created seconds cluster nodes exclude findings absent ranks links "
    "skipped hardware",
    "findings": "check node ranks text fails blame",
    "absent": "ranks node last",
    "ranks": "rank node device host gpu matmul files versions errors",
    "links": "inside between pairs network errors",
    "gpu": "uuid memory free bus uncorrected remap xids clock clock_limit slowdown",
    "host": "cores node_cores policy coreless huge_pages",
    "files": "folder free inodes rate",
}
"""preflight.json, for programs that read it: a name that goes or changes needs another schema."""


def test_the_schema_of_the_json() -> None:
    found = evidence(ill(6, uncorrected=2), gone=(Absent([5], "b", "matmul"),))
    data = Report.of(found, "h100_ib", "some ranks did not answer", 12.34).data()
    assert data["schema"] == 1
    parts = {
        "": data,
        "findings": data["findings"][0],
        "absent": data["absent"][0],
        "ranks": data["ranks"][0],
        "links": data["links"]["0"],
        **{name: data["ranks"][0][name] for name in ("gpu", "host", "files")},
    }
    for name, part in parts.items():
        assert " ".join(part) == KEYS[name], name
    assert data["exclude"] == ["b"]
    assert data["fit"] is False


@pytest.mark.parametrize(
    "arguments,word",
    [
        (["--fast"], "--fast: preflight has no such option"),
        (["resume=runs/x"], "resume=runs/x: preflight is about nodes"),
        (["cluster=alps_claridn"], "unknown; did you mean 'alps_clariden'?"),
        (["cluster.hardware.matmull=3"], "did you mean 'cluster.hardware.matmul'?"),
        (["cluster.nodes=4"], "4 x 1 devices asked for, but"),
        (["--wait"], "--wait: is for preflights that are submitted"),
        (["--seconds=1"], "--seconds: '1'; use a whole number"),
        (["--out"], "--out: needs a value"),
        ([f"--out={__file__}"], "is no folder"),
    ],
)
def test_bad_input(
    cli: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert cli("preflight", *arguments) == 2
    assert word in capsys.readouterr().err


def test_help(cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("preflight", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "cluster.hardware.network=null" in text
    assert "3 not fit" in text
