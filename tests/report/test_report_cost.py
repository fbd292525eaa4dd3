"""Costs, seconds and the points of the charts, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
import report_family as family
from report_family import TOKENS_PER_STEP, branch, config, create, demo, ends, measure

from llm_pretrain.duration import Duration, steps
from llm_pretrain.report.analysis import (
    Amount,
    costs,
    seconds,
)
from llm_pretrain.report.collect import collect
from llm_pretrain.report.curves import rate_steps, rates, thinned, training, validation
from llm_pretrain.report.data import RunData, Training


def train_row(step: int, tokens: int, rate: float) -> dict[str, Any]:
    return {"step": step, "tokens": tokens, "loss": 4.0, "tokens_per_second": rate}


def read(root: Path) -> dict[str, RunData]:
    return {run.label: run for run in collect(root).runs}


def test_cost_of_three_horizons_by_hand(tmp_path: Path) -> None:
    demo(tmp_path)
    (cost,) = costs(collect(tmp_path).runs)
    # Branches start at 240, 360, 480 and take 60, 90, 120 steps: 480 + 270 of 300 + 450 + 600.
    assert (cost.needed.steps, cost.scratch.steps) == (750, 1350)
    assert cost.needed.tokens == 750 * TOKENS_PER_STEP
    assert cost.ratio == pytest.approx(750 / 1350)
    assert 0.53 <= cost.ratio <= 0.60
    assert (cost.as_run.steps, cost.beyond.steps) == (870, 120)
    for amount in (cost.needed, cost.scratch, cost.as_run, cost.beyond):
        assert amount.seconds == pytest.approx(amount.tokens / family.RATE)


def test_unfinished_horizons_are_not_delivered(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss, until=500)
    short, long = branch(trunk, **ends(300, 600))
    measure(short, family.cooled_loss(short))
    measure(long, family.cooled_loss(long), until=520)
    (cost,) = costs(collect(tmp_path).runs)
    assert [run.label for run in cost.unfinished] == [long.record.name]
    assert (cost.needed.steps, cost.scratch.steps) == (300, 300)
    assert cost.ratio == 1.0
    assert (cost.as_run.steps, cost.beyond.steps) == (500 + 60 + 40, 260)


def test_no_finished_cooldown_costs_nothing(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    branch(trunk, **ends(300))
    assert costs(collect(tmp_path).runs) == []


def test_cost_follows_the_lineage_through_a_branch_at_constant_rate(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss, until=300)
    flat = {"at": [steps(200)], "cooldown": family.CooldownConfig(length=steps(0))}
    (middle,) = branch(trunk, ["data.global_batch=16"], **flat)
    measure(middle, family.steady_loss, until=500)
    at = {"at": [steps(400)], "cooldown": family.CooldownConfig(length=steps(100))}
    (run,) = branch(middle, **at)
    measure(run, family.cooled_loss(run))
    (cost,) = costs(collect(tmp_path).runs)
    # 200 steps of 2048 tokens, then 200 + 100 of twice that: all on the way to the one horizon.
    assert cost.needed.steps == cost.scratch.steps == 500
    assert cost.needed.tokens == cost.scratch.tokens == (200 + 2 * 300) * TOKENS_PER_STEP
    assert cost.needed.seconds == pytest.approx(cost.needed.tokens / family.RATE)
    assert cost.beyond.steps == 100 + 100
    assert cost.beyond.tokens == (100 + 2 * 100) * TOKENS_PER_STEP


def test_seconds_by_hand(tmp_path: Path) -> None:
    run = create(config(tmp_path, "demo"))
    run.append_metrics(
        train_row(1, 2048, 1024.0), train_row(11, 22528, 4096.0), train_row(21, 43008, 2048.0)
    )
    data = read(tmp_path)["demo"]
    assert seconds(data, 1) == pytest.approx(2.0)
    assert seconds(data, 11) == pytest.approx(2.0 + 5.0)
    assert seconds(data, 21) == pytest.approx(2.0 + 5.0 + 10.0)
    assert seconds(data, 6) == pytest.approx(2.0 + 2.5)  # half of the second row's stretch
    assert seconds(data, 23) == pytest.approx(17.0 + 2.0)  # at the rate of the last row
    assert seconds(data, 0) == 0


def test_seconds_without_a_rate_are_not_measured(tmp_path: Path) -> None:
    run = create(config(tmp_path, "demo"))
    run.append_metrics(train_row(1, 2048, 0.0))
    data = read(tmp_path)["demo"]
    assert seconds(data, 5) is None
    assert (Amount(1, 1, 1.0) + Amount(1, 1, None)).seconds is None
    assert Amount(3, 30, 3.0) - Amount(1, 10, 1.0) == Amount(2, 20, 2.0)


def test_branch_starts_on_its_parents_curve(tmp_path: Path) -> None:
    demo(tmp_path)
    runs = read(tmp_path)
    curve = validation(runs["demo.240-300.1-sqrt"])
    between = 0.4 * family.steady_loss(225) + 0.6 * family.steady_loss(250)
    assert curve.steps[:2] == [240, 250]
    assert curve.values[0] == pytest.approx(between)
    assert training(runs["demo.240-300.1-sqrt"]).steps[:2] == [240, 241]


def test_branch_beyond_its_parents_last_evaluation_starts_there(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss, until=240)
    (run,) = branch(trunk, **ends(300))
    measure(run, family.cooled_loss(run))
    assert validation(read(tmp_path)[run.record.name]).steps[:2] == [225, 250]


def test_rates_are_thinned_and_keep_the_edges_of_phases(tmp_path: Path) -> None:
    create(config(tmp_path, "long", 100_000, length=Duration.parse("20%")))
    run = read(tmp_path)["long"]
    kept = rate_steps(run)
    assert len(kept) <= 500
    assert {0, 49, 50, 79_999, 80_000, 99_999} <= set(kept)
    curve = rates(run)
    assert curve.values == [run.schedule.lr(step) for step in kept]
    assert curve.tokens == [step * TOKENS_PER_STEP for step in kept]


def test_rates_of_a_branch_are_its_own(tmp_path: Path) -> None:
    demo(tmp_path)
    assert rate_steps(read(tmp_path)["demo.480-600.1-sqrt"]) == list(range(480, 600))


def test_many_rows_become_means_of_neighbours() -> None:
    rows = [Training(step, 10 * step, float(step), 1.0) for step in range(1, 8)]
    assert thinned(rows, most=7) == rows
    assert [(row.step, row.loss) for row in thinned(rows, most=3)] == [(3, 2.0), (6, 5.0), (7, 7.0)]
