"""The headline, the numbers, the look of the charts, and the commands that make a run again."""

from dataclasses import replace
from pathlib import Path

import report_family as family
from report_family import branch, config, create, demo, ends, measure

from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.compose import compose_branch
from llm_pretrain.config.schema import BranchSpec
from llm_pretrain.duration import steps
from llm_pretrain.report import figures, reproduce, words
from llm_pretrain.report.analysis import costs, gains
from llm_pretrain.report.collect import collect


def test_headline_says_gain_and_cost(tmp_path: Path) -> None:
    demo(tmp_path)
    runs = collect(tmp_path).runs
    assert words.headline(runs, gains(runs), costs(runs)) == [
        "3 cooldowns from trunk demo: each ends below the trunk at equal tokens, by 0.17 nats per "
        "token, more than 3 standard errors each; compute 56% of training each horizon from "
        "scratch."
    ]


def test_headline_of_mixed_results(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo", 500)), family.steady_loss)
    first, second, third = branch(trunk, **ends(250, 300, 600))
    measure(first, lambda step: family.steady_loss(step) - 0.05)
    measure(second, lambda step: family.steady_loss(step) + 0.2)
    measure(third, family.cooled_loss(third))
    runs = collect(tmp_path).runs
    (said,) = words.headline(runs, gains(runs), costs(runs))
    assert said.startswith(
        "3 cooldowns from trunk demo: 1 of 2 end below the trunk at equal tokens (1 not comparable "
        "at equal tokens yet), by 0.05 nats per token; 0 of 1 by more than 3 standard errors"
    )


def test_headline_prices_a_family_with_two_trunks_once(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    flat = BranchSpec(at=[steps(200)], cooldown=family.CooldownConfig(length=steps(0)))
    (other,) = branch(trunk, ["optimizer.lr=2e-3"], at=flat.at, cooldown=flat.cooldown)
    measure(other, family.steady_loss)
    for run in (*branch(trunk, **ends(300)), *branch(other, **ends(600))):
        measure(run, family.cooled_loss(run))
    runs = collect(tmp_path).runs
    said = words.headline(runs, gains(runs), costs(runs))
    assert len(said) == 3
    assert [("compute" in sentence) for sentence in said] == [False, False, True]


def test_looks_tell_ten_branches_apart(tmp_path: Path) -> None:
    demo(tmp_path, horizons=range(200, 700, 50))
    runs = collect(tmp_path).runs
    figure = figures.validation_loss(runs)
    assert figure is not None
    seen = {(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in figure["data"]}
    assert len(seen) == len(figure["data"]) == 12
    assert [t["line"]["dash"] for t in figure["data"]] == ["solid"] * 11 + ["dash"]


def test_buttons_switch_to_steps(tmp_path: Path) -> None:
    demo(tmp_path)
    figure = figures.learning_rate(collect(tmp_path).runs)
    assert figure is not None
    tokens, steps_ = figure["layout"]["updatemenus"][0]["buttons"]
    assert tokens["args"][0]["x"] == [trace["x"] for trace in figure["data"]]
    assert steps_["args"][0]["x"][1] == list(range(240, 300))
    assert "Steps" in steps_["args"][1]["xaxis.title.text"]


def test_branch_command_reproduces_the_branch(tmp_path: Path) -> None:
    trunk = create(config(tmp_path, "demo"))
    branch(trunk, ["optimizer.weight_decay=0.2"], **ends(300))
    cooldown = family.CooldownConfig(length=steps(100), shape="linear", floor=0.1)
    branch(trunk, ["schedule.total=500 steps"], at=[steps(300)], cooldown=cooldown)
    flat = family.CooldownConfig(length=steps(0))
    branch(trunk, ["optimizer.lr=1e-3"], at=[steps(200)], cooldown=flat)
    runs = [run for run in collect(tmp_path).runs if run.parent]
    assert len(runs) == 3
    for run in runs:
        name, action, *overrides = reproduce.arguments(run)
        assert (name, action) == ("branch", "apply")
        asked = compose_branch(overrides)
        assert asked.parent == str(trunk.path)
        spec = BranchSpec(
            at=asked.at, ends=asked.ends, cooldown=asked.cooldown, overrides=asked.overrides
        )
        (again,) = expand(Origin(trunk.config, trunk.record.id, trunk.path), spec)
        assert again.config == run.config


def test_an_average_is_called_one(tmp_path: Path) -> None:
    """In its kind, in the table's words, and in the command that makes it again."""
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    spec = BranchSpec(kind="average", at=[steps(600)], of=3, spacing=steps(150))
    (made,) = branch(trunk, kind=spec.kind, at=spec.at, of=spec.of, spacing=spec.spacing)
    _, run = collect(tmp_path).runs
    assert (run.path, run.kind) == (made.path, "average")
    assert words.origin(run) == "average of demo at steps 300, 450, 600"
    name, action, *overrides = reproduce.arguments(run)
    assert (name, action) == ("branch", "apply")
    asked = compose_branch(overrides)
    again = BranchSpec(kind=asked.kind, at=asked.at, of=asked.of, spacing=asked.spacing)
    assert again == spec
    (twin,) = expand(Origin(trunk.config, trunk.record.id, trunk.path), again)
    assert twin.config == run.config


def test_trunk_command_is_what_was_asked(tmp_path: Path) -> None:
    create(config(tmp_path, "demo"), ["experiment=demo", "schedule.total=600 steps"])
    (run,) = collect(tmp_path).runs
    assert reproduce.command(run) == "llm-pretrain train experiment=demo 'schedule.total=600 steps'"


def test_numbers_in_words() -> None:
    assert [words.tokens(n) for n in (0, 614_400, 1_228_800, 10**10, 2 * 10**12)] == [
        "0",
        "614,400",
        "1.229M",
        "10B",
        "2T",
    ]
    assert [words.duration(s) for s in (None, 0.4, 119, 120, 7200, 2e6)] == [
        "not measured",
        "0 s",
        "119 s",
        "2.0 min",
        "2.0 h",
        "23.1 days",
    ]
    assert words.signed(-0.5) == "\N{MINUS SIGN}0.5000"


def test_focus_leaves_out_the_fall_at_the_start_only(tmp_path: Path) -> None:
    demo(tmp_path)
    runs = collect(tmp_path).runs
    figure = figures.validation_loss(runs)
    assert figure is not None
    low, high = figure["layout"]["yaxis"]["range"]
    shown = [y for trace in figure["data"] for y in trace["y"] if low <= y <= high]
    assert high < family.steady_loss(25)
    assert min(y for trace in figure["data"] for y in trace["y"]) in shown
    flat = replace(runs[0], evaluations=runs[0].evaluations[-4:], parent=None)
    again = figures.validation_loss([flat])
    assert again is not None
    assert "range" not in again["layout"]["yaxis"]
