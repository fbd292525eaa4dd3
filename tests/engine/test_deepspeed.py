"""ZeRO against the plain module: the same numbers, the same state, resumed to the last bit."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.engine.build import build_engine
from tests.engine.zero import (
    ODD,
    SMALL,
    STEPS,
    Values,
    after_a_broken_step,
    alone,
    configured,
    evaluations,
    footprint,
    initial,
    loaded_and_trained,
    numbers,
    recomputed,
    reference,
    take,
    train,
    uninterrupted_and_resumed,
    whole,
    with_small_buckets,
    zero,
)
from tests.ranks.commands import Zygote
from tests.ranks.functions import Crew
from tests.support import CONF

VARIANTS = [
    *[(stage, "none") for stage in (1, 2, 3)],
    *[(stage, "optimizer") for stage in (1, 2, 3)],
    (3, "all"),
]


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Two ranks."""
    two = Crew(Layout(shard=2), tmp_path_factory.mktemp("crew"))
    yield two
    two.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Three ranks."""
    ranks = Crew(Layout(shard=3), tmp_path_factory.mktemp("three"))
    yield ranks
    ranks.close()


def assert_same(a: Values, b: Values) -> None:
    assert list(a) == list(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_near(a: Values, b: Values, bound: float) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=0, atol=bound), name


def assert_near_numbers(ranks: list[Any], plain: list[tuple[float, float]], scale: float) -> None:
    """Mean loss and norm of each step: 1e-5 after the first, 1e-4 after the last, times `scale`."""
    for step, ((loss, norm), *others) in enumerate(zip(plain, *ranks, strict=True)):
        bound = scale * 1e-5 * math.pow(10, step / (STEPS - 1))
        assert sum(local for local, _ in others) / len(others) == pytest.approx(loss, rel=bound), (
            step
        )
        for _, other in others:
            assert other == pytest.approx(norm, rel=bound), step


@pytest.mark.parametrize(
    ("stage", "offload", "bucket"),
    [(*variant, "one bucket") for variant in VARIANTS]
    + [(2, "none", "many"), (2, "optimizer", "many"), (3, "none", "many"), (3, "all", "many")],
)
def test_equals_the_plain_module_and_resumes_bit_by_bit(
    crew: Crew, stage: int, offload: str, bucket: str
) -> None:
    """Small buckets cut gradients and, at stage 3, partitions; some tensors are larger than one."""
    action = uninterrupted_and_resumed if bucket == "one bucket" else with_small_buckets
    ranks = crew.run(action, zero(stage, offload))
    plain, final = reference(configured())
    assert max(norm for _, norm in plain) > 0.2, "clipped"
    assert_near_numbers([seen for seen, *_ in ranks], plain, 1)
    for seen, state, resumed, resumed_state in ranks:
        assert_near(state, final, 1e-5)
        assert resumed == seen[STEPS // 2 :]
        assert_same(resumed_state, state)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_starts_from_the_same_values(crew: Crew, stage: int) -> None:
    plain = whole(build_engine(configured(), alone()))
    for state in crew.run(initial, zero(stage)):
        assert_same(state, plain)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("model", [SMALL, ODD], ids=["even", "odd"])
def test_takes_over_any_state_on_three_ranks(three: Crew, stage: int, model: ModelConfig) -> None:
    _, values = reference(configured(model))
    values = {name: value + 0.01 * value.abs() for name, value in values.items()}
    engine = build_engine(configured(model), alone())
    take(engine, values)
    plain = train(engine, alone(), configured(model), range(2))
    ranks = three.run(loaded_and_trained, zero(stage, model=model), values)
    assert_near_numbers([seen for _, seen, _ in ranks], plain, 2)
    for loaded, _, trained in ranks:
        assert_same(loaded, values)
        assert_near(trained, whole(engine), 1e-5)


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "none"), (2, "optimizer"), (3, "none"), (3, "optimizer")]
)
def test_norm_without_clipping(crew: Crew, stage: int, offload: str) -> None:
    plain, final = reference(configured(clip=0.0))
    ranks = crew.run(numbers, zero(stage, offload, clip=0.0))
    assert_near_numbers([seen for seen, _ in ranks], plain, 1)
    assert_near(ranks[0][1], final, 1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_is_the_autocast_of_the_plain_module(crew: Crew, stage: int) -> None:
    plain, _ = reference(configured(precision="bf16"))
    exact, _ = reference(configured())
    ranks = crew.run(numbers, zero(stage, precision="bf16"))
    # A sum in bfloat16 depends on the size of what a processor adds up at once: up to 3.4e-4 was
    # seen on one, 1e-4 on another. What q, k and v send back to their common input adds up so, too,
    # and DeepSpeed's hooks of stage 3 change the order.
    assert_near_numbers([seen for seen, _ in ranks], plain, 30 if stage == 3 else 10)
    assert plain[0] != pytest.approx(exact[0], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_recomputed_blocks(crew: Crew, stage: int) -> None:
    plain, _ = reference(configured())
    ranks = crew.run(recomputed, zero(stage, recompute="block"))
    assert_near_numbers([seen for _, seen in ranks], plain, 1)
    assert [calls for calls, _ in ranks] == [2 * 3] * 2
    assert crew.run(recomputed, zero(stage))[0][0] == 3


@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_changes_nothing(crew: Crew, stage: int) -> None:
    (with_it, *_), (without, *_) = (
        crew.run(numbers, zero(stage), evaluate) for evaluate in (True, False)
    )
    assert with_it[0] == without[0]
    assert_same(with_it[1], without[1])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_evaluation(crew: Crew, stage: int) -> None:
    expected = evaluations(alone(), configured())
    for losses in crew.run(evaluations, zero(stage)):
        for loss, plain in zip(losses, expected, strict=True):
            assert loss.shape == (12,)
            assert torch.allclose(loss, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_left_out_is_never_forgotten(crew: Crew, stage: int) -> None:
    plain = build_engine(configured(), alone())
    (_, norm), *_ = train(plain, alone(), configured(), range(1))
    for broken, after, anew in crew.run(after_a_broken_step, zero(stage)):
        assert (broken, after) == (math.inf, math.inf)
        assert anew == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_3_holds_a_few_blocks(crew: Crew, precision: str) -> None:
    model = replace(SMALL, width=40, layers=16)
    gathered, total, kept = crew.run(footprint, zero(3, model=model, precision=precision))[0]
    assert kept == []
    assert 0 < gathered < total / 2


def test_one_process_says_nothing_more(
    deepspeed_zygote: Zygote, tmp_path: Path, cache: Path
) -> None:
    arguments = ["experiment=tiny", f"--config-dir={CONF}", f"run.dir={tmp_path / 'run'}"]
    zygote: Callable[..., Any] = deepspeed_zygote.train
    done = zygote(
        1,
        *arguments,
        f"data.cache={cache}",
        "engine=deepspeed",
        "engine.zero_stage=3",
        "schedule.total=6 steps",
        "schedule.warmup=2 steps",
    )
    lines = done.output().splitlines()
    assert [line for line in lines if not line.startswith(("tiny: ", "words: "))] == []
