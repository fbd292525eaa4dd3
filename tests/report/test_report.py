"""The command and its page: what they say, also of runs that are young, broken or orphaned."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_family as family
from report_family import branch, config, cosine, create, demo, ends, measure

from llm_pretrain.errors import UserError
from llm_pretrain.report import figures
from llm_pretrain.report.collect import collect
from llm_pretrain.report.command import report
from llm_pretrain.runs import Run


class Page(HTMLParser):
    """The tags, the visible text and the scripts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.styles = ""
        self._tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            self.scripts.append(data)
        elif self._tag == "style":
            self.styles += data
        else:
            self.text += data


def page_of(root: Path) -> Page:
    assert report([str(root)]) == 0
    return Page(root / "report.html")


def test_page_names_every_run_in_text_and_charts(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    page = page_of(tmp_path)
    charts = "".join(page.scripts[1:])
    for run in runs:
        assert run.record.name in page.text
        assert charts.count(f'"{run.record.name}') >= 3


def test_sections_are_in_order(tmp_path: Path) -> None:
    demo(tmp_path)
    page = page_of(tmp_path)
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert sections == ["loss", "rates", "runs", "gains", "cost", "reproduce"]
    charts = ["validation-loss", "training-loss", "learning-rate"]
    assert [v for t, n, v in page.attributes if (t, n) == ("div", "id")] == charts


def test_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    demo(tmp_path)
    page = page_of(tmp_path)
    assert [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action")] == []
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    own = page.scripts[1:]  # the first is plotly.js itself
    assert own
    assert not [text for text in own if "http://" in text or "https://" in text]
    policy = [v for t, n, v in page.attributes if t == "meta" and "default-src 'none'" in v]
    assert len(policy) == 1


def test_page_states_gains_costs_and_lineage(tmp_path: Path) -> None:
    demo(tmp_path)
    text = page_of(tmp_path).text
    assert "demo at step 480" in text
    assert "warmup 0-50, constant 50-480 at 0.004, cooldown 480-600 1-sqrt to 0" in text
    assert "+0.1686 ± 0.0283" in text
    assert "lower by 6.0 se" in text
    assert "not clearly different (0.3 se)" in text
    assert "needed 55.6% of the tokens" in text
    assert "experiment=demo run.name=demo" in text
    assert re.search(r"Made \d{4}-.* by llm-pretrain \d", text)


def test_special_characters_are_text(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    name = '<script>alert(1)</script> & "quoted" %{x} [bold]'
    family.renamed(trunk, name)
    trunk.update(state="failed", reason="<b>reason</b>", overrides=["run.name='<i>'"])
    page = page_of(tmp_path)
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert name in page.text
    assert "<b>reason</b>" in page.text
    assert "<script>alert" not in raw
    assert "<i>" not in raw.split("</head>")[1]
    assert len(page.scripts) == 1 + 3


@pytest.mark.parametrize("state", ["created", "running", "failed", "interrupted"])
def test_run_without_metrics(tmp_path: Path, state: str) -> None:
    run = create(config(tmp_path, "young"))
    run.update(state=state, reason="out of memory\nmore" if state == "failed" else None)
    with run.hold():
        text = page_of(tmp_path).text
    assert "1 run, no cooldown yet; 0 with a validation loss." in text
    assert "No evaluation yet in any run." in text
    assert "No training row yet in any run." in text
    assert state in text
    assert ("out of memory" in text) is (state == "failed")
    assert "There is no cooldown yet." in text


def test_running_run_and_a_lost_one_are_told_apart(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss, until=310)
    trunk.update(state="running")
    with trunk.hold():
        assert "running" in page_of(tmp_path).text
    assert "lost" in page_of(tmp_path).text


def test_running_branch_is_reported_beside_finished_ones(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    done, going, waiting = branch(trunk, **ends(300, 450, 600))
    measure(done, family.cooled_loss(done))
    measure(going, family.cooled_loss(going), until=400)
    page = page_of(tmp_path)
    assert "interrupted at step 400 of 450" in page.text
    assert "created at step 480 of 600" in page.text
    assert f"No evaluation yet: {waiting.record.name}." in page.text
    assert "(2 not comparable at equal tokens yet)" in page.text
    assert f"{going.record.name}, {waiting.record.name}." in page.text


def test_missing_parent_is_said(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    shutil.rmtree(runs[0].path)
    text = page_of(tmp_path).text
    assert "parent not found" in text
    assert "No trunk to compare with: demo.240-300.1-sqrt" in text
    assert "Not counted, since the parent is missing" in text


def test_parent_in_another_folder_is_found(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    alone = tmp_path / "deeper" / "runs"
    alone.mkdir(parents=True)
    moved = runs[1].path.rename(alone / runs[1].path.name)
    Run(moved).update(parent_dir="../../../demo")
    text = page_of(alone).text
    assert "an ancestor from outside the folder" in text
    assert "1 cooldown from trunk demo: it ends below the trunk at equal tokens" in text


def test_report_on_one_run_shows_its_ancestors(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    text = page_of(runs[1].path).text
    assert "1 cooldown from trunk demo" in text


def test_unreadable_config_does_not_hide_the_others(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    runs[0].config_path.write_text("model: [")
    text = page_of(tmp_path).text
    assert "demo cannot be read" in text
    assert "demo.240-300.1-sqrt: parent not found" in text
    assert runs[-1].record.name in text


def test_only_unreadable_runs(tmp_path: Path) -> None:
    create(config(tmp_path, "demo")).config_path.write_text("x: 1")
    assert "demo cannot be read" in page_of(tmp_path).text


def test_copy_of_a_run_does_not_replace_the_parent(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    backup = shutil.copytree(runs[0].path, tmp_path / "a-backup")
    (backup / "config.yaml").write_text("x: 1")
    text = page_of(tmp_path).text
    assert "parent not found" not in text
    assert "3 cooldowns from trunk demo (demo)" in text


def test_damaged_metrics_are_said(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    with runs[0].metrics_path.open("a") as file:
        file.write('{"step": 600, "tokens": 1, "val_loss": NaN, "val_stderr": 0}\n{"step": 1}\n7\n')
        file.write('{"step": 601, "to')
    with runs[1].metrics_path.open("a") as file:
        file.write("not json\n")
    text = page_of(tmp_path).text
    assert "demo: 3 rows of metrics.jsonl are not finite or incomplete" in text
    assert "demo.240-300.1-sqrt: metrics.jsonl cannot be read" in text


def test_many_rows_are_said_to_be_means(tmp_path: Path) -> None:
    run = create(config(tmp_path, "long", 30_000))
    row = {"loss": 3.0, "tokens_per_second": 1e3}
    run.append_metrics(*({"step": s, "tokens": s * 2048, **row} for s in range(1, 4002)))
    page = page_of(tmp_path)
    assert "Except long: each point is the mean of neighbouring rows." in page.text
    figure = figures.training_loss(collect(tmp_path).runs)
    assert figure is not None
    assert len(figure["data"][0]["x"]) <= 2000


def test_summary_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(tmp_path)
    family.renamed(create(cosine(tmp_path, "odd", 300)), "odd [red]name[/red]")
    assert report([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "report.html")
    (row,) = [line for line in lines if "demo.240-300.1-sqrt" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:6] == ["240", "finished", "300/300", "614,400", "3.7974 ± 0.0200"]
    assert cells[6:] == ["+0.1686 ± 0.0283", "yes"]
    assert any("odd [red]name[/red]" in line for line in lines)


def test_output_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(config(tmp_path / "runs", "demo"))
    target = tmp_path / "page.html"
    assert report([str(tmp_path / "runs"), f"--out={target}"]) == 0
    assert target.is_file()
    assert not (tmp_path / "runs" / "report.html").exists()
    assert capsys.readouterr().out.endswith(f"{target}\n")


def test_second_report_replaces_the_first(tmp_path: Path) -> None:
    demo(tmp_path)
    page_of(tmp_path)
    create(config(tmp_path, "another"))
    assert "another" in page_of(tmp_path).text
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["report.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}", "{}"], "report: takes one folder with runs, and --out FILE.html; got "),
        (["{}", "out=x.html"], "--out FILE.html; got .* out=x.html"),
        (["{}", "--ou"], "--ou: report has no such option; did you mean '--out'"),
        (["{}", "--out="], "--out: needs one FILE.html"),
        (["{}/nowhere"], "no such folder"),
        (["{}"], "holds no run"),
        (["{}", "--out={}/none/page.html"], "does not exist"),
        (["{}", "--out={}"], "is a folder"),
        (["{}", "--out={}/page.txt"], "does not end in .html"),
        (["{}", f"--out={'a' * 300}.html"], "cannot be written .File name too long"),
    ],
)
def test_bad_input_is_a_user_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        report([argument.format(tmp_path) for argument in arguments])


def test_record_without_git_or_versions(tmp_path: Path) -> None:
    run = create(config(tmp_path, "demo"))
    record = json.loads(run.record_path.read_text())
    run.record_path.write_text(json.dumps(record | {"git": {}, "versions": {}}))
    assert "not recorded" in page_of(tmp_path).text
