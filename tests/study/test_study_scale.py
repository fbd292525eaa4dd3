"""Looking at a study: what it costs grows with its branches, and a look changes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose, compose_command
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate import plan
from llm_pretrain.runs import Run
from llm_pretrain.study.budget import budget
from llm_pretrain.study.config import MethodConfig, SizeConfig, StudyArgs, StudyConfig
from llm_pretrain.study.expand import stems
from llm_pretrain.study.reconcile import Starter, held_back, survey
from tests.audit import operations
from tests.study.study_family import describe, make
from tests.support import CONF

Cli = Callable[..., int]
TRUNKS = 2
OPERATIONS = 4
"""On files for a branch that exists: is it there, job.json, run.json, config.yaml."""


def test_operations_on_files_grow_with_the_branches(tmp_path: Path) -> None:
    counts = []
    for branches in (8, 16, 32):
        place = tmp_path / str(branches)
        found = make(place, TRUNKS, branches)
        with operations(place) as seen:
            survey(found)
        counts.append(len(seen))
    # Of as many branches more, half exist; of one that is missing, only that is looked at.
    each = TRUNKS * (OPERATIONS + 1) // 2
    assert counts[1] - counts[0] <= 8 * each
    assert counts[2] - counts[1] <= 16 * each


def test_no_more_runs_are_under_way_than_the_limit_allows(tmp_path: Path) -> None:
    cosine = MethodConfig(["schedule=cosine"], scratch=True)
    study = StudyConfig("many", str(tmp_path), ["experiment=demo"], {"s": SizeConfig()})
    horizons = [f"{200 + 10 * i} steps" for i in range(5)]
    found = stems(replace(study, horizons=horizons, methods={"cosine": cosine}), [])
    rounds: list[list[int]] = []

    def launch(runs: Sequence[Run], cluster: ClusterConfig) -> int:
        rounds.append([run.record.total for run in runs])
        for run in runs:
            failed = run.record.total == 240
            run.update(state="failed" if failed else "finished", step=run.record.total)
        return 0

    starter, waiting = Starter(lambda config: config.cluster, launch, jobs=2), []
    while starter.round(survey(found))[0]:
        waiting.append(starter.waiting)
    # The longest first, and the one that failed neither again nor in the way of others.
    assert rounds == [[240, 230], [220, 210], [200]]
    assert waiting == [3, 1, 0]
    running = [replace(one, status="running", action="none") for one in survey(found)]
    one = [*running[:1], *(replace(other, action="start") for other in running[1:])]
    assert [s.action for s in held_back(one, 5)] == ["none", *["wait"] * 4]


def test_a_long_plan_shows_its_trunks(
    tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 3, 80)
    before = sorted(tmp_path.rglob("*"))
    assert cli("study", "plan", *describe(tmp_path, 3, 80)) == 0
    printed = capsys.readouterr().out
    assert "beside these, branches: 120 finished, 120 missing" in printed
    assert "apply would start 120 runs now" in printed
    assert len(printed.splitlines()) < 20
    assert sorted(tmp_path.rglob("*")) == before


def test_the_speed_of_a_shape_is_estimated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten trunks with a hundred branches each, of two shapes, and none where it is not known."""
    describe(tmp_path, 10, 100)
    data = ["study=many", "study.root=elsewhere"]
    asked = compose_command("study", data, StudyArgs, tmp_path / "conf").study
    shapes = [SizeConfig([f"model.ffn={384 + 16 * (i % 2)}"]) for i in range(10)]
    sizes = {f"s{i}": size for i, size in enumerate(shapes)}
    bf16 = ["cluster=alps_clariden", "cluster.devices_per_node=1", "precision=bf16"]
    traced: list[TrainConfig] = []

    def traces(config: TrainConfig) -> None:
        traced.append(config)

    monkeypatch.setattr(plan, "estimated_speed", traces)
    found = survey(stems(replace(asked, sizes=sizes), bf16))
    cost = budget(found, lambda config: config.cluster)
    assert len(cost.lines) == 1010
    assert len(traced) == 2
    budget(survey(stems(replace(asked, sizes=sizes), bf16[:2])), lambda config: config.cluster)
    assert len(traced) == 2, "profiles have no rates for fp32"


def test_the_speed_alone_is_that_of_the_whole_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_CORPUS", str(tmp_path))
    config = compose(["experiment=tiny", "precision=bf16", "cluster=alps_clariden"], CONF)
    speed = plan.estimated_speed(config)
    assert speed is not None
    assert speed == plan.estimate(config).speed
