"""Gains, interpolation, costs and seconds, against numbers worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_family as family
from report_family import TOKENS_PER_STEP, branch, config, cosine, create, demo, ends, measure

from llm_pretrain.duration import Duration, steps
from llm_pretrain.report.analysis import (
    CLEAR,
    Amount,
    costs,
    gains,
    interpolate,
    seconds,
    trunk_of,
)
from llm_pretrain.report.collect import collect
from llm_pretrain.report.curves import joint_of, rate_steps, rates, thinned, training, validation
from llm_pretrain.report.data import Evaluation, RunData, Training
from llm_pretrain.runs import Run


def evaluation(step: int, loss: float, stderr: float = 0.02) -> dict[str, Any]:
    tokens = step * TOKENS_PER_STEP
    return {"step": step, "tokens": tokens, "val_loss": loss, "val_stderr": stderr}


def train_row(step: int, tokens: int, rate: float) -> dict[str, Any]:
    return {"step": step, "tokens": tokens, "loss": 4.0, "tokens_per_second": rate}


def read(root: Path) -> dict[str, RunData]:
    return {run.label: run for run in collect(root).runs}


def gained(root: Path) -> Any:
    runs = collect(root).runs
    return gains(runs)[0]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, Run]:
    """A trunk with evaluations at 280 and 320, and a finished cooldown that ends at 300."""
    trunk = create(config(tmp_path, "demo"))
    (cooldown,) = branch(trunk, **ends(300))
    trunk.append_metrics(
        evaluation(240, 3.2), evaluation(280, 3.0, 0.02), evaluation(320, 2.8, 0.04)
    )
    cooldown.append_metrics(evaluation(300, 2.7, 0.04))
    cooldown.update(state="finished", step=300)
    return trunk, cooldown


def test_interpolation_is_linear_between_neighbours() -> None:
    curve = [Evaluation(10, 100, 4.0, 0.1), Evaluation(20, 300, 3.0, 0.3)]
    middle = interpolate(curve, 150)
    assert middle is not None
    assert (middle.step, middle.tokens) == (12, 150)
    assert middle.loss == pytest.approx(3.75)
    assert middle.stderr == pytest.approx(0.15)


def test_interpolation_at_an_evaluation_is_that_evaluation() -> None:
    curve = [Evaluation(1, 100, 4.0, 0.1), Evaluation(2, 200, 3.0, 0.2), Evaluation(3, 300, 2.0, 0)]
    assert [interpolate(curve, e.tokens) for e in curve] == curve
    assert interpolate(curve[:1], 100) == curve[0]


def test_interpolation_never_goes_beyond_what_was_measured() -> None:
    curve = [Evaluation(1, 100, 4.0, 0.1), Evaluation(2, 200, 3.0, 0.2)]
    assert interpolate(curve, 99) is interpolate(curve, 201) is interpolate([], 1) is None


def test_gain_at_equal_tokens_by_hand(pair: tuple[Run, Run], tmp_path: Path) -> None:
    gain = gained(tmp_path)
    assert gain.trunk.equal_tokens
    assert gain.trunk.value.tokens == gain.end.tokens == 300 * TOKENS_PER_STEP
    assert gain.trunk.value.loss == pytest.approx(2.9)  # halfway from 3.0 to 2.8
    assert gain.trunk.gain == pytest.approx(0.2)
    assert gain.trunk.stderr == pytest.approx(0.05)  # 0.03 and 0.04 in quadrature
    assert gain.trunk.sigmas == pytest.approx(4.0)
    assert gain.trunk.clear
    assert gain.note == ""


def test_three_standard_errors_are_the_limit(pair: tuple[Run, Run], tmp_path: Path) -> None:
    cooldown = pair[1]
    for loss, clear in ((2.9 - 0.05 * CLEAR + 1e-6, False), (2.9 - 0.05 * CLEAR - 1e-6, True)):
        cooldown.metrics_path.unlink()
        cooldown.append_metrics(evaluation(300, loss, 0.04))
        assert gained(tmp_path).trunk.clear is clear


def test_exact_losses_have_infinite_or_no_sigmas(pair: tuple[Run, Run], tmp_path: Path) -> None:
    trunk, cooldown = pair
    trunk.append_metrics(evaluation(360, 2.8, 0.0))
    for run, row in ((trunk, evaluation(300, 2.9, 0.0)), (cooldown, evaluation(300, 2.7, 0.0))):
        run.metrics_path.unlink()
        run.append_metrics(row)
    assert gained(tmp_path).trunk.sigmas == math.inf


def test_trunk_that_ends_earlier_is_not_called_equal(pair: tuple[Run, Run], tmp_path: Path) -> None:
    trunk = pair[0]
    trunk.rewind_metrics(280)
    gain = gained(tmp_path)
    assert not gain.trunk.equal_tokens
    assert gain.trunk.value.step == 280
    assert gain.trunk.gain == pytest.approx(0.3)
    assert gain.note == f"trunk ends earlier at {280 * TOKENS_PER_STEP:,} tokens"


def test_unfinished_cooldown_has_no_gain(pair: tuple[Run, Run], tmp_path: Path) -> None:
    cooldown = pair[1]
    cooldown.metrics_path.unlink()
    cooldown.append_metrics(evaluation(275, 2.8))
    cooldown.update(state="interrupted", step=275)
    gain = gained(tmp_path)
    assert gain.end is gain.trunk is gain.reference is None
    assert gain.note == "interrupted at step 275 of 300"


def test_cooldown_without_its_last_evaluation_says_so(
    pair: tuple[Run, Run], tmp_path: Path
) -> None:
    pair[1].metrics_path.unlink()
    assert gained(tmp_path).note == "no evaluation at its end"


def test_trunk_without_evaluations_says_so(pair: tuple[Run, Run], tmp_path: Path) -> None:
    pair[0].metrics_path.unlink()
    gain = gained(tmp_path)
    assert gain.trunk is None
    assert "no evaluation as early" in gain.note


def test_other_held_out_text_is_not_compared(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    (run,) = branch(trunk, ["eval.sequences=64"], **ends(300))
    measure(run, family.cooled_loss(run))
    gain = gained(tmp_path)
    assert gain.trunk is None
    assert "not comparable" in gain.note
    assert joint_of(gain.run) is None


def test_another_weight_of_a_source_is_compared(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    (run,) = branch(trunk, ["data.sources.stdlib.weight=2.0"], **ends(300))
    measure(run, family.cooled_loss(run))
    assert gained(tmp_path).trunk is not None


def test_trunk_of_a_cooldown_from_a_cooldown_is_the_constant_run(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    (first,) = branch(trunk, **ends(300))
    measure(first, family.cooled_loss(first))
    at = {"at": [steps(270)], "cooldown": family.CooldownConfig(length=steps(60), shape="linear")}
    (second,) = branch(first, **at)
    measure(second, lambda step: 3.0)
    runs = read(tmp_path)
    deep = runs[second.record.name]
    assert trunk_of(deep) is runs["demo"]
    (gain,) = [g for g in gains(list(runs.values())) if g.run is deep]
    assert gain.trunk is not None
    assert gain.trunk.value.loss == pytest.approx(
        0.8 * family.steady_loss(325) + 0.2 * family.steady_loss(350)
    )


def test_cosine_parent_is_no_trunk(tmp_path: Path) -> None:
    parent = measure(create(cosine(tmp_path, "cos", 600)), family.steady_loss)
    (run,) = branch(parent, **ends(300))
    measure(run, family.steady_loss)
    assert gained(tmp_path).note == "no ancestor at a constant rate"


def test_trunk_with_a_cooldown_of_its_own_counts_until_it_starts(tmp_path: Path) -> None:
    wsd = config(tmp_path, "wsd", 600, length=Duration.parse("20%"))
    parent = measure(create(wsd), family.steady_loss)
    (run,) = branch(parent, **ends(600))
    measure(run, family.cooled_loss(run))
    gain = gained(tmp_path)
    assert not gain.trunk.equal_tokens
    assert gain.trunk.value.step == 475  # its cooldown starts at 480


def test_reference_is_the_best_run_of_the_same_length(tmp_path: Path) -> None:
    demo(tmp_path, horizons=(300, 600))
    better = create(cosine(tmp_path, "lower", 600))
    measure(better, lambda step: 2.0)
    longer = create(cosine(tmp_path, "longer", 700))
    measure(longer, lambda step: 1.0)
    short, long = gains(collect(tmp_path).runs)
    assert short.reference is None
    assert short.reference_note == "none of this length"
    assert long.reference is not None
    assert long.reference.other.label == "lower"
    assert long.end is not None
    assert long.reference.gain == pytest.approx(2.0 - long.end.loss)


def test_reference_of_another_model_is_not_compared(tmp_path: Path) -> None:
    demo(tmp_path, horizons=(300,))
    wide = cosine(tmp_path, "wide", 300)
    measure(create(replace(wide, model=replace(wide.model, width=256))), lambda step: 1.0)
    (gain,) = gains(collect(tmp_path).runs)
    assert gain.reference is not None
    assert gain.reference.other.label == "demo-cosine"


def test_unfinished_reference_is_named(tmp_path: Path) -> None:
    trunk = measure(create(config(tmp_path, "demo")), family.steady_loss)
    (run,) = branch(trunk, **ends(300))
    measure(run, family.cooled_loss(run))
    measure(create(cosine(tmp_path, "cos", 300)), family.steady_loss, until=100)
    assert gained(tmp_path).reference_note == "cos has not finished"


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
    # 200 steps of 2048 tokens, then 200 + 100 of twice that; all of it is its own from-scratch run.
    assert cost.needed == cost.scratch
    assert cost.needed.steps == 500
    assert cost.needed.tokens == (200 + 2 * 300) * TOKENS_PER_STEP
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
