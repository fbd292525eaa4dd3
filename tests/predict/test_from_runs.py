"""What run directories give the predictor; they exist without having been trained."""

from dataclasses import replace
from pathlib import Path

import pytest

from llm_pretrain.branch.plan import Branch
from llm_pretrain.branch.reconcile import wanted
from llm_pretrain.config.compose import compose
from llm_pretrain.config.data import SourceConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.from_runs import measured
from llm_pretrain.predict.history import Case, History
from llm_pretrain.records import State, new_record
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from tests.branch.branch_family import CODE, create
from tests.predict.law_family import DECAY, made, typical

TOTAL, EVERY = 6000, 100
PLAN = "plan=[{ends: [3000 steps, 4000 steps], cooldown: {length: 20%}}]"


def truth(config: TrainConfig, steps: list[int]) -> list[dict[str, float]]:
    """Rows of metrics as the angular law has them, at the rates of the config."""
    law, history = AngularLaw(), History(schedule_of(config).rates())
    losses = made(law, typical(law), [Case(history, step) for step in steps])
    return [
        {"step": s, "val_loss": x, "val_stderr": 0.01}
        for s, x in zip(steps, losses.tolist(), strict=True)
    ]


def trunk(place: Path, trained: int) -> Run:
    """A trunk that was evaluated up to the step `trained`."""
    arguments = ["experiment=demo", f"run.dir={place}", f"schedule.total={TOTAL} steps", PLAN]
    run = Run.create(compose(arguments), new_record("trunk", total=TOTAL, code=CODE))
    steps = list(range(EVERY, trained + 1, EVERY))
    run.append_metrics(*truth(run.config, steps))
    return run


def branch(parent: Run, planned: Branch, config: TrainConfig, state: State = "finished") -> Run:
    """A branch that was evaluated once, at its end."""
    run = create(parent, planned, config, state=state)
    run.append_metrics(*truth(config, [planned.end]))
    return run


def test_a_trunk_and_its_finished_branches(tmp_path: Path) -> None:
    parent = trunk(tmp_path / "trunk", 4000)
    first, second = wanted(parent, parent.config.plan)
    done = branch(parent, first, first.config)
    seen = measured(parent, [parent, done])
    ends = [o for o in seen.observations if o.kind == "final"]
    assert (seen.reason, seen.weight_decay) == (None, DECAY)
    assert [(o.case.step, o.loss) for o in ends] == [(first.end, done.metrics()[-1]["val_loss"])]
    found = seen.predictor().predict(schedule_of(second.config))
    assert found.loss == pytest.approx(truth(second.config, [second.end])[0]["val_loss"], abs=2e-3)


def test_runs_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    parent = trunk(tmp_path / "trunk", 4000)
    first, second = wanted(parent, parent.config.plan)
    sources = {"other": SourceConfig(kind="stdlib", limit=10)}
    elsewhere = replace(first.config, data=replace(first.config.data, sources=sources))
    others = [branch(parent, first, elsewhere), branch(parent, second, second.config, "running")]
    assert all(o.kind == "curve" for o in measured(parent, others).observations)


def test_a_branch_has_the_curve_of_its_ancestors(tmp_path: Path) -> None:
    """A trunk that was continued is one curve: the parent's up to the branch, then its own."""
    parent = trunk(tmp_path / "trunk", 4000)
    first, _ = wanted(parent, parent.config.plan)
    child = branch(parent, first, first.config)
    alone, both = measured(parent), measured(child)
    assert max(o.case.step for o in both.observations) == first.end
    early = {round(o.loss, 2) for o in alone.observations if o.case.step < 1000}
    assert early & {round(o.loss, 2) for o in both.observations}


def test_too_little_is_told(tmp_path: Path) -> None:
    seen = measured(trunk(tmp_path / "trunk", 400))
    assert "usable points" in (seen.reason or "")
    with pytest.raises(UserError, match="no prediction: the trunk's curve"):
        seen.predictor()


def test_a_changed_batch_is_told(tmp_path: Path) -> None:
    parent = trunk(tmp_path / "trunk", 4000)
    first, _ = wanted(parent, parent.config.plan)
    larger = replace(first.config.data, global_batch=16)
    child = branch(parent, first, replace(first.config, data=larger))
    assert "batch" in (measured(child).reason or "")
