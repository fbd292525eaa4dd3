"""Learning rates worked out by hand from the paper's formulas, at every phase edge."""

import math

import pytest

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.duration import Duration
from llm_pretrain.schedule.schedule import Schedule, schedule_of

ROOT_HALF = math.sqrt(0.5)


def config(
    total: str, warmup: str, length: str, shape: str = "1-sqrt", floor: float = 0.0
) -> TrainConfig:
    """A run with the given schedule; 64 tokens a step, peak rate 2e-3."""
    cooldown = CooldownConfig(
        length=length if length == "rest" else Duration.parse(length),  # type: ignore[arg-type]
        shape=shape,  # type: ignore[arg-type]
        floor=floor,
    )
    return TrainConfig(
        optimizer=OptimizerConfig(lr=2e-3),
        schedule=ScheduleConfig(
            total=Duration.parse(total), warmup=Duration.parse(warmup), cooldown=cooldown
        ),
        data=DataConfig(sequence_length=8, global_batch=8, micro_batch=8),
    )


def schedule(*arguments: str, **options: float) -> Schedule:
    return schedule_of(config(*arguments, **options))  # type: ignore[arg-type]


# 100 updates, warmup 10 from 0.01, cooldown of 20: updates 80 to 99, progress (u - 80) / 20.
EDGES = {0: 0.01, 1: 0.109, 5: 0.505, 9: 0.901, 10: 1.0, 11: 1.0, 79: 1.0, 80: 1.0}
SHAPES = {
    ("linear", 0.0): {81: 0.95, 85: 0.75, 90: 0.5, 99: 0.05, 100: 0.0},
    ("1-sqrt", 0.0): {
        81: 1 - math.sqrt(0.05), 85: 0.5, 90: 1 - ROOT_HALF, 99: 1 - math.sqrt(0.95), 100: 0.0,
    },
    ("1-sqrt", 0.1): {85: 0.55, 90: 0.1 + 0.9 * (1 - ROOT_HALF), 100: 0.1},
    ("cosine", 0.0): {85: (1 + ROOT_HALF) / 2, 90: 0.5, 95: (1 - ROOT_HALF) / 2, 100: 0.0},
    ("mirror-cosine", 0.0): {
        85: 1.5 - (1 + ROOT_HALF) / 2, 90: 0.5, 95: 0.5 - (1 - ROOT_HALF) / 2, 100: 0.0,
    },
    ("square", 0.0): {81: 0.9975, 85: 0.9375, 90: 0.75, 99: 0.0975, 100: 0.0},
    ("exponential", 0.01): {82: 10**-0.2, 85: 10**-0.5, 90: 0.1, 95: 10**-1.5, 100: 0.01},
}  # fmt: skip


@pytest.mark.parametrize("shape,floor", SHAPES)
def test_cooldown_shapes(shape: str, floor: float) -> None:
    s = schedule("100 steps", "10 steps", "20%", shape, floor=floor)
    for step, multiplier in {**EDGES, **SHAPES[shape, floor]}.items():
        assert s.multiplier(step) == pytest.approx(multiplier, abs=1e-14), step
        assert s.lr(step) == pytest.approx(2e-3 * multiplier, abs=1e-16), step


def test_cosine_over_the_whole_run() -> None:
    s = schedule("110 steps", "10 steps", "rest", "cosine", floor=0.1)
    third = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    golden = {0: 0.01, 9: 0.901, 10: 1.0, 35: third, 60: 0.55, 110: 0.1}
    for step, multiplier in golden.items():
        assert s.multiplier(step) == pytest.approx(multiplier, abs=1e-14), step


def test_linear_over_the_whole_run() -> None:
    s = schedule("100 steps", "0 steps", "rest", "linear")
    assert [s.multiplier(u) for u in (0, 1, 50, 99, 100)] == pytest.approx([1, 0.99, 0.5, 0.01, 0])


def test_constant_and_the_end_of_a_trunk() -> None:
    s = schedule("100 steps", "0 steps", "0 steps")
    assert {s.multiplier(u) for u in range(100)} == {1.0}
    assert s.total == 100


def test_no_update_is_spent_at_rate_zero() -> None:
    for shape in ("linear", "1-sqrt", "cosine", "mirror-cosine", "square"):
        s = schedule("50 steps", "0 steps", "100%", shape)
        assert s.multiplier(0) == 1.0
        assert all(s.multiplier(u) > 0 for u in range(50))
        assert s.multiplier(50) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    "total,length,start",
    [
        (100, "29%", 71),  # int(100 * 0.29) is 28 in floating point
        (562, "20%", 450),  # 112.4 steps, rounded down
        (563, "20%", 451),
        (1000, "0.5%", 995),
        (7, "20%", 6),
        (4, "20%", 4),  # less than a step: no cooldown
        (100, "640 tokens", 90),
        (100, "641 tokens", 89),  # tokens round up to whole steps
    ],
)
def test_rounding_of_the_cooldown(total: int, length: str, start: int) -> None:
    s = schedule(f"{total} steps", "0 steps", length)
    cooldowns = [p for p in s.phases if p.kind == "cooldown"]
    assert [p.start for p in cooldowns] == ([start] if start < total else [])
    assert s.total == total


def test_total_in_tokens_rounds_up_to_steps() -> None:
    assert schedule("6400 tokens", "0 steps", "0 steps").total == 100
    assert schedule("6401 tokens", "0 steps", "0 steps").total == 101
    assert schedule("6.4k tokens", "2%", "0 steps").phases[0].length == 2


def test_reference_multipliers_of_the_papers_code() -> None:
    """N=1000, W=50, 20%: three values of each decay type read off the paper's own code."""
    for shape, reference in {
        "linear": {850: 0.75, 999: 0.005},
        "1-sqrt": {850: 0.5, 999: 1 - math.sqrt(0.995)},
        "cosine": {900: 0.5, 999: (1 + math.cos(math.pi * 0.995)) / 2},
        "square": {850: 0.9375, 999: 1 - 0.995**2},
    }.items():
        s = schedule("1000 steps", "50 steps", "20%", shape)
        assert s.multiplier(25) == pytest.approx(0.505, abs=1e-12)
        for step, multiplier in reference.items():
            assert s.multiplier(step) == pytest.approx(multiplier, abs=1e-12)


def test_a_round_trip_and_the_fingerprint() -> None:
    a, b = schedule("100 steps", "10 steps", "20%"), schedule("100 steps", "10 steps", "20 steps")
    assert Schedule.from_dict(a.to_dict()) == a
    assert a.fingerprint() == b.fingerprint()
    for other in (
        schedule("100 steps", "10 steps", "21%"),
        schedule("100 steps", "11 steps", "20%"),
        schedule("100 steps", "10 steps", "20%", "linear"),
        schedule("101 steps", "10 steps", "20 steps"),
    ):
        assert other.fingerprint() != a.fingerprint()


def test_prolonging() -> None:
    trunk, longer = (
        schedule("100 steps", "5 steps", "0 steps"),
        schedule("200 steps", "5 steps", "0 steps"),
    )
    assert longer.prolongs(trunk)
    assert trunk.prolongs(longer)
    assert not schedule("200 steps", "5 steps", "10%").prolongs(trunk)
    assert not longer.prolongs(schedule("100 steps", "5 steps", "10%"))
    assert not schedule("200 steps", "5%", "0 steps").prolongs(trunk)
    assert not schedule("200 steps", "6 steps", "0 steps").prolongs(trunk)
