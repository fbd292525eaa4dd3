"""Gains and interpolation, against numbers worked out by hand."""

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
    gains,
    interpolate,
    trunk_of,
)
from llm_pretrain.report.collect import collect
from llm_pretrain.report.curves import joint_of
from llm_pretrain.report.data import Evaluation, RunData
from llm_pretrain.runs import Run


def evaluation(step: int, loss: float, stderr: float = 0.02) -> dict[str, Any]:
    tokens = step * TOKENS_PER_STEP
    return {"step": step, "tokens": tokens, "val_loss": loss, "val_stderr": stderr}


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
