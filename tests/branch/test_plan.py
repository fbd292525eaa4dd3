"""Which branches a spec means: starts, ends, rates along the lineage, names, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pretrain.branch.plan import Branch, Origin, expand, planned_steps
from llm_pretrain.config.compose import compose, override
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.config.schema import BranchSpec, TrainConfig
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import clock_of, schedule_of

TRUNK = compose(["experiment=demo", "optimizer.lr=1e-3", "plan=[]", "schedule.total=1000 steps"])


def spec(
    *, at: str = "", ends: str = "", length: str = "20%", shape: str = "1-sqrt",
    floor: float = 0.0, overrides: tuple[str, ...] = (),
) -> BranchSpec:  # fmt: skip
    cooldown = CooldownConfig(length=Duration.parse(length), shape=shape, floor=floor)  # type: ignore[arg-type]
    return BranchSpec(
        at=[Duration.parse(a) for a in at.split(",") if a],
        ends=[Duration.parse(e) for e in ends.split(",") if e],
        cooldown=cooldown,
        overrides=list(overrides),
    )


def branches(asked: BranchSpec, parent: TrainConfig = TRUNK, name: str = "trunk-1") -> list[Branch]:
    return expand(Origin(parent, name, Path(parent.run.dir)), asked)


def only(asked: BranchSpec, parent: TrainConfig = TRUNK) -> Branch:
    (branch,) = branches(asked, parent)
    return branch


@pytest.mark.parametrize(
    "at,length,end",
    [
        ("300 steps", "20%", 375),
        ("450 steps", "20%", 562),  # 562 - floor(112.4) = 450
        ("301 steps", "20%", 376),
        ("300 steps", "50%", 600),
        ("301 steps", "50%", 602),
        ("300 steps", "100 steps", 400),
        ("300 steps", "204800 tokens", 400),  # 2048 tokens a step
        ("614400 tokens", "20%", 375),
    ],
)
def test_starts(at: str, length: str, end: int) -> None:
    branch = only(spec(at=at, length=length))
    start = branch.start
    assert branch.end == end
    assert start == (300 if "tokens" in at else int(at.split(maxsplit=1)[0]))
    s = schedule_of(branch.config)
    assert s.total == end
    assert (s.phases[-1].kind, s.phases[-1].start) == ("cooldown", start)


@pytest.mark.parametrize(
    "ends,length,start",
    [
        ("500 steps", "20%", 400),
        ("562 steps", "20%", 450),
        ("375 steps", "20%", 300),
        ("1M tokens", "20%", 392),  # 489 steps, 97 of cooldown
        ("500 steps", "77 steps", 423),
    ],
)
def test_horizons(ends: str, length: str, start: int) -> None:
    branch = only(spec(ends=ends, length=length))
    assert branch.start == start
    assert schedule_of(branch.config).total == branch.end


@given(st.integers(1, 5000), st.integers(1, 9999))
def test_percent_of_the_whole_branch(start: int, hundredths: int) -> None:
    """at and ends agree: the branch that starts at s and ends at N has floor(p N) cooldown."""
    length = f"{hundredths // 100}.{hundredths % 100:02d}%"
    parent = override(TRUNK, ["schedule.total=5000 steps"])
    try:
        branch = only(spec(at=f"{start} steps", length=length), parent)
    except UserError as error:
        assert "less than a step" in str(error)
        return
    end = branch.end
    assert end - end * hundredths // 10_000 == start
    assert end + 1 - (end + 1) * hundredths // 10_000 > start
    again = only(spec(ends=f"{end} steps", length=length), parent)
    assert (again.start, again.end) == (start, end)


def test_the_history_of_rates_is_in_the_config() -> None:
    branch = only(spec(at="300 steps"))
    child, trunk = schedule_of(branch.config), schedule_of(TRUNK)
    assert [child.lr(u) for u in range(300)] == [trunk.lr(u) for u in range(300)]
    assert child.lr(300) == 1e-3
    assert child.lr(374) == pytest.approx(1e-3 * (1 - (74 / 75) ** 0.5))


def test_a_branch_of_a_branch() -> None:
    first = only(spec(at="300 steps", length="100 steps", shape="linear"))
    second = only(spec(at="350 steps", length="50 steps", shape="linear", floor=0.25), first.config)
    s = schedule_of(second.config)
    assert [s.multiplier(u) for u in (300, 349, 350, 375, 400)] == pytest.approx(
        [1.0, 0.51, 0.5, 0.375, 0.25]
    )
    assert [segment.until for segment in second.config.past] == [300, 350]


def test_another_rate_another_batch_another_mixture() -> None:
    changes = ("optimizer.lr=5e-4", "data.global_batch=16", "data.sources.stdlib.weight=3")
    branch = only(spec(at="300 steps", length="100 steps", overrides=changes))
    assert schedule_of(branch.config).lr(300) == 5e-4
    assert schedule_of(branch.config).lr(299) == 1e-3
    assert clock_of(branch.config).tokens_at(301) == 300 * 2048 + 4096
    assert branch.overrides == changes


def test_no_cooldown_is_a_longer_or_different_trunk() -> None:
    branch = only(spec(at="300 steps", length="0 steps", overrides=("schedule.total=2000 steps",)))
    s = schedule_of(branch.config)
    assert (s.total, [p.kind for p in s.phases]) == (2000, ["warmup", "constant"])


def test_a_later_end_puts_the_cooldown_at_the_end() -> None:
    asked = spec(at="300 steps", length="50 steps", overrides=("schedule.total=500 steps",))
    s = schedule_of(only(asked).config)
    assert (s.phases[-1].start, s.total) == (450, 500)


def test_names_are_equal_exactly_for_equal_branches() -> None:
    variants = [
        spec(at="300 steps"),
        spec(at="301 steps"),
        spec(at="300 steps", length="30%"),
        spec(at="300 steps", shape="linear"),
        spec(at="300 steps", floor=0.1),
        spec(at="300 steps", overrides=("optimizer.lr=5e-4",)),
        spec(at="300 steps", overrides=("optimizer.lr=6e-4",)),
    ]
    assert len({only(v).path for v in variants}) == len(variants)
    assert only(spec(at="300 steps")).path == only(spec(ends="375 steps")).path
    assert only(spec(at="300 steps", overrides=("cluster.jobs=2",))).path == only(variants[0]).path


@pytest.mark.parametrize(
    "change,reason",
    [
        ("model.width=64", "shape"),
        ("model=paper/33m", "shape"),
        ("data.tokenizer.vocab_size=500", "tokens"),
        ("run.seed=3", "seed"),
        ("schedule.warmup=3 steps", "warmup"),
        ("schedule.cooldown.length=3 steps", "cooldown.length"),
        ("past=[]", "lineage"),
    ],
)
def test_what_cannot_change(change: str, reason: str) -> None:
    with pytest.raises(UserError, match="a branch cannot change it") as error:
        branches(spec(at="300 steps", overrides=(change,)))
    assert reason in str(error.value)


def test_beyond_the_parents_end() -> None:
    assert only(spec(at="1000 steps")).problem is None
    branch = only(spec(at="1001 steps"))
    assert branch.problem is not None
    assert "ends at step 1000" in branch.problem


def test_from_a_finished_cooldown_there_is_no_rate_left() -> None:
    cooled = only(spec(at="300 steps"))
    with pytest.raises(UserError, match="learning rate is 0 at step 375"):
        branches(spec(at="375 steps"), cooled.config)


def test_the_plan_of_a_run_keeps_its_steps() -> None:
    assert planned_steps(compose(["experiment=demo"])) == {320, 400, 480}


def test_a_hold_and_a_rise_are_parts_of_the_branch() -> None:
    cooldown = CooldownConfig(length=steps(40), hold=steps(10), shape="linear", floor=0.1)
    asked = replace(spec(at="300 steps"), cooldown=cooldown, rewarmup=steps(20))
    asked = replace(asked, overrides=["optimizer.lr=2e-3"])
    branch = only(asked)
    assert (branch.start, branch.end) == (300, 370)
    s = schedule_of(branch.config)
    rates = {299: 1e-3, 300: 1e-3, 310: 1.5e-3, 320: 2e-3, 340: 1.1e-3, 360: 2e-4, 369: 2e-4}
    for step, rate in rates.items():
        assert s.lr(step) == pytest.approx(rate), step
    (back,) = branches(replace(asked, at=[], ends=[steps(370)]))
    assert (back.start, back.end, back.path) == (300, 370, branch.path)


def test_what_only_the_schedule_differs_in_is_in_the_name() -> None:
    at = {"at": "300 steps", "overrides": ("schedule.total=900 steps",)}
    plain = only(spec(**at, length="50 steps"))  # type: ignore[arg-type]
    halved = "schedule.stages=[{at: 400 steps, factor: 0.5}]"
    staged = only(spec(at="300 steps", length="50 steps", overrides=(*at["overrides"], halved)))
    assert plain.path != staged.path
    assert schedule_of(staged.config).lr(500) == pytest.approx(5e-4)
    powers = [
        only(replace(spec(at="300 steps"), cooldown=CooldownConfig(
            length=steps(50), shape="power", exponent=exponent)))
        for exponent in (0.5, 0.7)
    ]  # fmt: skip
    assert powers[0].path != powers[1].path


def test_training_goes_on_from_the_end_of_a_cooldown() -> None:
    done = override(TRUNK, ["schedule.cooldown={length: 20%, shape: linear}"])
    with pytest.raises(UserError, match="learning rate is 0 at step 1000; branch earlier, or ask"):
        only(spec(at="1000 steps", length="100 steps"), done)
    again = replace(spec(at="1000 steps", length="100 steps"), rewarmup=steps(50))
    s = schedule_of(only(again, done).config)
    assert [s.lr(step) for step in (999, 1000, 1025, 1050, 1100)] == pytest.approx(
        [5e-6, 0, 5e-4, 1e-3, 1e-3 * (1 - 0.5**0.5)]
    )
