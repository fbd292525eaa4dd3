"""Our calls of Transformer Engine, to a stand-in: names, contexts and state, not arithmetic."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_pretrain.config.precision import TORCHAO, TRANSFORMER_ENGINE
from llm_pretrain.config.schema import PrecisionConfig
from llm_pretrain.engine import fp8
from llm_pretrain.engine.build import build_engine
from llm_pretrain.errors import UserError
from tests.engine.test_fp8 import MATRICES, SMALL
from tests.engine.zero import alone, batch, configured, train

HOPPER = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, importable in this test only."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_in"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    yield
    for name in [n for n in sys.modules if n.startswith("transformer_engine")]:
        del sys.modules[name]
    fp8._recipe.cache_clear()


def asked(recipe: Any = "current", library: Any = TRANSFORMER_ENGINE, **engine: Any) -> Any:
    precision = PrecisionConfig(name="fp8", library=library, recipe=recipe, keep_last=1)
    return replace(configured(model=SMALL, **engine), precision=precision)


def matrices(engine: Any) -> dict[str, Any]:
    kind = sys.modules["transformer_engine.pytorch"].Linear
    return {name: m for name, m in engine.model.named_modules() if isinstance(m, kind)}


RECIPES = {
    "current": "Float8CurrentScaling",
    "delayed": "DelayedScaling",
    "block": "Float8BlockScaling",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_pass_is_inside_the_recipe(recipe: str) -> None:
    engine = build_engine(asked(recipe), alone())
    found = matrices(engine)
    assert found.keys() == {f"blocks.{i}.{name}" for i in (0, 1, 2) for name in MATRICES}
    train(engine, alone(), asked(recipe), range(2))
    for module in found.values():
        # Before each of two steps of six micro-batches, an evaluation.
        assert module.seen == [RECIPES[recipe]] * 2 * (1 + 6)
        assert module.weight.dtype == torch.float32
        assert not module.use_bias


@pytest.mark.parametrize("recipe", ["current", "block"])
def test_computed_again_inside_the_recipe(recipe: str) -> None:
    config = asked(recipe, recompute="block")
    engine = build_engine(config, alone())
    again = train(engine, alone(), config, range(1), evaluate=False)
    for module in matrices(engine).values():
        assert module.seen == [RECIPES[recipe]] * 2 * 6
    plain = build_engine(asked(recipe), alone())
    assert train(plain, alone(), asked(recipe), range(1), evaluate=False) == again


def scales(engine: Any, config: Any) -> dict[str, Tensor]:
    return fp8.state(engine.model, config.precision)


def test_delayed_scaling_is_saved_and_loaded() -> None:
    config = asked("delayed")
    engine = build_engine(config, alone())
    names = scales(engine, config).keys()
    assert len(names) == 3 * 7 * 2 * 2
    assert "blocks.2.mlp.down.scaling_bwd.amax_history" in names
    assert all((t == (n.endswith("scale"))).all() for n, t in scales(engine, config).items())
    train(engine, alone(), config, range(2))
    after = scales(engine, config)
    largest = engine.model.get_parameter("blocks.0.attention.q.weight").abs().max().item()
    assert after["blocks.0.attention.q.scaling_fwd.scale"][1] == pytest.approx(
        448 / largest, rel=0.5
    )
    other = build_engine(config, alone())
    fp8.load(other.model, config.precision, after)
    assert all(torch.equal(after[n], t) for n, t in scales(other, config).items())
    assert fp8.fresh_state(other.model, config.precision).keys() == names
    assert all((t <= 1).all() for t in fp8.fresh_state(other.model, config.precision).values())


def test_evaluation_leaves_no_trace() -> None:
    config = asked("delayed")
    engine = build_engine(config, alone())
    train(engine, alone(), config, range(1), evaluate=False)
    before = scales(engine, config)
    with fp8.unchanged(engine.model, config.precision):
        engine.evaluate(batch(7, config)[:4] * 0)
    assert all(torch.equal(before[n], t) for n, t in scales(engine, config).items())


def test_other_recipes_have_no_state() -> None:
    for recipe in ("current", "block"):
        engine = build_engine(asked(recipe), alone())
        train(engine, alone(), asked(recipe), range(1))
        assert scales(engine, asked(recipe)) == {}


class TestAvailable:
    """On a GPU that could."""

    def test_preferred(self) -> None:
        assert fp8.available(asked(library="auto"), HOPPER) == fp8.Products(TRANSFORMER_ENGINE, {})
        assert fp8.available(asked("delayed"), HOPPER).library == TRANSFORMER_ENGINE
        assert fp8.available(asked(library=TORCHAO), HOPPER) == fp8.Products(TORCHAO, {})

    @pytest.mark.parametrize(
        ("engine", "word"),
        [
            ({"tensor": 2}, "engine.tensor=2"),
            ({"compile": True}, "engine.compile"),
            ({"recompute": "selective"}, "selective"),
        ],
    )
    def test_what_it_cannot_do(self, engine: dict[str, Any], word: str) -> None:
        found = fp8.available(asked(library="auto", **engine), HOPPER)
        assert found.library == TORCHAO
        assert word in found.why_not[TRANSFORMER_ENGINE]

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformer_engine", None)
        found = fp8.available(asked(library="auto"), HOPPER)
        assert found.library == TORCHAO
        assert "[transformer-engine]" in found.why_not[TRANSFORMER_ENGINE]
        monkeypatch.setitem(sys.modules, "torchao.float8", None)
        for library in ("auto", TORCHAO, TRANSFORMER_ENGINE):
            with pytest.raises(UserError, match="pip install"):
                fp8.available(asked(library=library), HOPPER)

    def test_a_recipe_that_the_device_lacks(self) -> None:
        for library in ("auto", TRANSFORMER_ENGINE):
            with pytest.raises(UserError, match=r"CUDA >= 12\.9") as error:
                fp8.available(asked("block", library), HOPPER)
            assert "torchao" not in str(error.value)

    def test_older_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
        with pytest.raises(UserError, match=r"A100 has 8\.0"):
            fp8.available(asked(), HOPPER)
        with pytest.raises(UserError, match=r"computes on cpu"):
            fp8.available(asked(), torch.device("cpu"))
