"""Averages against means of recorded parameters; their state, places and refusals."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import describe, fill, keys
from llm_pretrain.config.average import AverageSteps, in_steps
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.errors import UserError
from llm_pretrain.optim.averaging import Averages, Plain
from llm_pretrain.schedule.schedule import clock_of
from llm_pretrain.world import World
from tests.checkpoint.states import CONFIG, leaves, meta, put_truth, truth
from tests.ranks.functions import run

Values = dict[str, Tensor]
ALONE = World(0, Layout(), torch.device("cpu"))


class Walk:
    """Parameters that wander, and all the values that they ever had."""

    def __init__(self) -> None:
        self._draw = torch.Generator().manual_seed(3)
        self.model = nn.Linear(5, 3)
        self.seen: list[Values] = [self.values()]

    def values(self) -> Values:
        """A copy of what the parameters hold."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def steps(self, averages: Averages, begin: int, end: int) -> None:
        """From `begin` updates done to `end`."""
        for step in range(begin + 1, end + 1):
            with torch.no_grad():
                for p in self.model.parameters():
                    p.add_(torch.randn(p.shape, generator=self._draw), alpha=0.1)
            self.seen.append(self.values())
            averages.after(step)

    def mean(self, steps: range) -> Values:
        """In float64, of what was seen after these numbers of updates."""
        return self.weighted([(step, 1.0) for step in steps])

    def weighted(self, samples: list[tuple[int, float]]) -> Values:
        """Mean in float64 with weights by step."""
        total = sum(weight for _, weight in samples)
        return {
            name: sum((self.seen[s][name].double() * w for s, w in samples), torch.zeros(()))
            / total
            for name in self.seen[0]
        }


def make(
    walk: Walk,
    every: int,
    *windows: int,
    stride: int | None = None,
    half_lives: tuple[int, ...] = (),
) -> Averages:
    """Averages of a walk's parameters."""
    parts = Plain(dict(walk.model.named_parameters()))
    return Averages(parts, AverageSteps(every, stride or math.gcd(*windows), windows, half_lives))


def applied(averages: Averages, walk: Walk, name: str) -> Values:
    """What the parameters hold while an average is applied."""
    with averages.applied(name):
        return walk.values()


def assert_close(found: Values, expected: Values) -> None:
    """To the rounding of float32."""
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("every", "stride", "windows"),
    [(3, 6, (6, 12, 30)), (3, 3, (12,)), (2, 8, (8,)), (5, 10, (20, 30))],
    ids=["the paper's sweep", "LAWA", "one after the other", "longer than the stride"],
)
def test_windows_are_the_means_of_their_samples(
    every: int, stride: int, windows: tuple[int, ...]
) -> None:
    walk = Walk()
    averages = make(walk, every, *windows, stride=stride)
    for done in range(1, 61):
        walk.steps(averages, done - 1, done)
        ended = [n for n in windows if done % stride == 0 and n <= done]
        assert averages.complete() == [f"window_{n}" for n in ended]
        for n in ended:
            expected = walk.mean(range(done - n + every, done + 1, every))
            assert_close(applied(averages, walk, f"window_{n}"), expected)


def test_a_window_of_whole_numbers_is_exact() -> None:
    """Sums of small integers have no rounding, so a wrong sample cannot hide in a tolerance."""
    walk = Walk()
    averages = make(walk, 2, 8)
    for step in range(1, 25):
        with torch.no_grad():
            for p in walk.model.parameters():
                p.fill_(step * step)
        averages.after(step)
        if step % 8 == 0:
            mean = sum(s * s for s in range(step - 6, step + 1, 2)) / 4
            for value in applied(averages, walk, "window_8").values():
                assert torch.equal(value, torch.full_like(value, mean))


def test_half_lives_by_their_closed_form() -> None:
    walk = Walk()
    averages = make(walk, 4, half_lives=(6, 50))
    walk.steps(averages, 0, 3)
    assert averages.complete() == []
    walk.steps(averages, 3, 42)
    assert averages.complete() == ["half_life_6", "half_life_50"]
    for half_life in (6, 50):
        weights = [(s, 0.5 ** ((40 - s) / half_life)) for s in range(4, 41, 4)]
        assert_close(applied(averages, walk, f"half_life_{half_life}"), walk.weighted(weights))


def test_parameters_come_back_bit_by_bit_also_after_an_error() -> None:
    walk = Walk()
    averages = make(walk, 1, 4, half_lives=(3,))
    walk.steps(averages, 0, 4)
    before, kept = walk.values(), {n: v.clone() for n, v in leaves(averages.state())}
    for name in averages.complete():
        with pytest.raises(RuntimeError, match="lost"), averages.applied(name):
            assert any(not torch.equal(v, before[n]) for n, v in walk.values().items())
            raise RuntimeError("lost")
        assert all(torch.equal(v, before[n]) for n, v in walk.values().items())
    after = dict(leaves(averages.state()))
    assert all(torch.equal(value, after[name]) for name, value in kept.items())


def save(averages: Averages, place: Path, step: int) -> Callable[[Averages], None]:
    """Write a checkpoint; what loads it into others."""
    store = CheckpointStore(place)
    saver = Saver(store, ALONE)
    saver.start({"model": {"x": torch.ones(2)}, "average": averages.state()}, meta(step))
    saver.wait()
    folder = store.path(step)
    return lambda others: others.load(step, lambda state: fill(folder, state), keys(folder))


@pytest.mark.parametrize("stop", [1, 6, 10, 12, 13, 20, 24])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(stop: int, tmp_path: Path) -> None:
    walk, names = Walk(), (2, 4, 12)
    averages = make(walk, *names, half_lives=(5,))
    walk.steps(averages, 0, stop)
    load = save(averages, tmp_path, stop)
    others = make(walk, *names, half_lives=(5,))
    load(others)

    class Both:
        """Takes the same steps with both."""

        def after(self, step: int) -> None:
            averages.after(step)
            others.after(step)

    walk.steps(Both(), stop, 48)  # type: ignore[arg-type]
    assert averages.complete() == others.complete() == ["window_4", "window_12", "half_life_5"]
    mine, theirs = dict(leaves(averages.state())), dict(leaves(others.state()))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_longer_windows_after_a_resume_go_on_from_what_is_there(tmp_path: Path) -> None:
    walk = Walk()
    averages = make(walk, 2, 4)
    walk.steps(averages, 0, 10)
    others = make(walk, 2, 4, 8, half_lives=(3,))
    save(averages, tmp_path, 10)(others)
    complete = []
    for step in range(10, 24):
        walk.steps(others, step, step + 1)
        complete.append((step + 1, others.complete()))
    windows = {step: [n for n in names if "window" in n] for step, names in complete}
    # What was saved reaches back to step 8, where a stretch began.
    assert {step: names for step, names in windows.items() if names} == {
        12: ["window_4"],
        16: ["window_4", "window_8"],
        20: ["window_4", "window_8"],
        24: ["window_4", "window_8"],
    }
    assert_close(applied(others, walk, "window_8"), walk.mean(range(18, 25, 2)))
    weights = [(s, 0.5 ** ((24 - s) / 3)) for s in range(12, 25, 2)]
    assert_close(applied(others, walk, "half_life_3"), walk.weighted(weights))


def test_another_stride_after_a_resume_begins_at_its_next_start(tmp_path: Path) -> None:
    walk = Walk()
    averages = make(walk, 2, 12)
    walk.steps(averages, 0, 8)
    others = make(walk, 2, 6)
    save(averages, tmp_path, 8)(others)
    complete = []
    for step in range(8, 24):
        walk.steps(others, step, step + 1)
        complete += [step + 1] if others.complete() else []
    # It is resumed in the middle of a window.
    assert complete == [18, 24]
    assert_close(applied(others, walk, "window_6"), walk.mean(range(20, 25, 2)))


def test_another_interval_is_another_average(tmp_path: Path) -> None:
    walk = Walk()
    averages = make(walk, 2, 12, half_lives=(4,))
    walk.steps(averages, 0, 6)
    others = make(walk, 3, 12, half_lives=(4,))
    others.after(3)
    assert others.complete() == ["half_life_4"]
    save(averages, tmp_path, 6)(others)
    assert others.complete() == []
    walk.steps(others, 6, 12)
    assert others.complete() == ["half_life_4"]
    walk.steps(others, 12, 24)
    assert_close(applied(others, walk, "window_12"), walk.mean(range(15, 25, 3)))


def wander(world: World, place: Path) -> bool:
    """Averages over engines' parameters in a layout, saved within a window and evaluated after it.

    Whether parameters were restored.
    """
    engine = FsdpEngine(CONFIG, world)
    parts = Plain(engine.state()["model"])
    averages = Averages(parts, AverageSteps(1, 1, (2, 3), (2,)))
    saver = Saver(CheckpointStore(place), world)
    for step in range(1, 7):
        put_truth(engine.state()["model"], seed=step)
        averages.after(step)
        if step in (4, 6):
            saver.start({"average": averages.state()}, meta(step))
            saver.wait()
    before = [p.clone() for p in _locals(engine)]
    with averages.applied("window_3"):
        saver.start({"model": engine.state()["model"]}, meta(7))
        saver.wait()
    return all(torch.equal(a, b) for a, b in zip(before, _locals(engine), strict=True))


def _locals(engine: FsdpEngine) -> Iterator[Tensor]:
    for value in engine.state()["model"].values():
        yield value.to_local() if hasattr(value, "to_local") else value


@pytest.mark.parametrize(
    "layout", [Layout(shard=2), Layout(replicate=2), Layout(tensor=2)], ids=["shard", "copy", "cut"]
)
def test_averages_of_parts_are_parts_of_averages(layout: Layout, tmp_path: Path) -> None:
    """Uneven and empty parts too; each file read on one process, bit by bit."""
    names = ("whole", "cut")
    restored = [
        run(tmp_path, which, wander, tmp_path / name)
        for name, which in zip(names, (Layout(), layout), strict=True)
    ]
    assert all(all(found) for found in restored)
    for step in (4, 6, 7):
        one, two = (read(CheckpointStore(tmp_path / name).path(step)) for name in names)
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    whole = read(CheckpointStore(tmp_path / "cut").path(7))
    for name, value in whole.items():
        plain = name.removeprefix("model.")
        samples = [truth(plain, value.shape, seed=s).double() for s in (4, 5, 6)]
        torch.testing.assert_close(value.double(), sum(samples, torch.zeros(())) / 3)


def read(folder: Path) -> Values:
    """Every tensor of a checkpoint."""
    tensors = {n: torch.empty_like(t, device="cpu") for n, t in describe(folder).items()}
    fill(folder, dict(tensors))
    return tensors


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["average.windows=[503 steps]"],
            "average.windows: 503 steps are no multiple of average.every=5 steps; use 500 or 505",
        ),
        (
            ["average.windows=[3 steps]"],
            "3 steps are no multiple of average.every=5 steps; use 5 steps",
        ),
        (
            ["average.windows=[300 steps]", "eval.every=200 steps"],
            "every 300 steps, mostly between two evaluations, with eval.every=200 steps; use "
            "eval.every=300 steps",
        ),
        (["average.windows=[0 steps]"], "average.windows: '0 steps' is no length; use \"5 steps\""),
        (["average.half_lives=[0 steps]"], "average.half_lives: '0 steps' is no length"),
        (["average.every=0 steps"], "average.every: '0 steps' is no length; use \"1 steps\""),
        (["average.windows=[10%]"], "average.windows: '10%' of the run would change when it is"),
        (["average.windows=[2000 steps]"], "2000 steps are more than the 600 of the run"),
        (
            ["average.windows=[250 steps]", "eval.every=0 steps"],
            "end every 250 steps and are never evaluated, with eval.every=0 and an end at step 600",
        ),
        (
            ["average.windows=[100 steps]", "average.stride=30 steps"],
            "average.windows: 100 steps are no multiple of average.stride=30 steps; use 90 or 120",
        ),
        (
            ["average.windows=[100 steps]", "average.stride=12 steps"],
            "average.stride: 12 steps are no multiple of average.every=5 steps; use 10 or 15 steps",
        ),
        (
            ["average.windows=[335 steps,500 steps]"],
            "335, 500 steps that end every 5 steps are 100 sums as large as the model; use a "
            "stride of 8 steps or more that divides all of them",
        ),
        (
            ["average.half_lives=[9 steps]", "optimizer=schedule_free"],
            "average: with optimizer.name=schedule_free, which evaluates an average of its own",
        ),
    ],
)
def test_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        compose(["experiment=demo", "schedule.total=600 steps", "plan=[]", *overrides])
    assert message in str(error.value)


def test_groups_and_lengths_in_tokens() -> None:
    asked = ["experiment=demo", "schedule.total=5000 steps", "plan=[]", "eval.every=500 steps"]
    swa, lawa, ema = (compose([*asked, f"average={n}"]) for n in ("swa", "lawa", "ema"))
    sweep = (500, 1000, 1500, 2000, 2500)
    assert in_steps(swa.average, clock_of(swa)) == AverageSteps(5, 500, sweep, ())
    assert in_steps(lawa.average, clock_of(lawa)) == AverageSteps(100, 100, (500,), ())
    assert in_steps(ema.average, clock_of(ema)) == AverageSteps(10, 0, (), (135,))
    # The paper's decay of 0.95 for one sample.
    assert pytest.approx(0.95, abs=1e-4) == 0.5 ** (10 / 135)
    tokens = swa.data.global_batch * swa.data.sequence_length
    config = compose([*asked, f"average.half_lives=[{3 * tokens - 1} tokens,3 steps]"])
    assert in_steps(config.average, clock_of(config)) == AverageSteps(5, 0, (), (3,))
