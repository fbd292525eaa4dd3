"""Our calls of Transformer Engine, to a stand-in: names, contexts and state, not arithmetic."""

import sys
from collections.abc import Callable, Iterator
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
from tests.engine.zero import alone, batch, configured
from tests.engine.zero import train as updates
from tests.support import assert_same_bits, tensors

Train = Callable[..., int]
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


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in needs no GPU, so a whole run may ask for it."""
    monkeypatch.setattr(fp8, "_require_capable", lambda _device: None)


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
    updates(engine, alone(), asked(recipe), range(2))
    for module in found.values():
        # Before each of two steps of six micro-batches, an evaluation.
        assert module.seen == [RECIPES[recipe]] * 2 * (1 + 6)
        assert module.weight.dtype == torch.float32
        assert not module.use_bias


@pytest.mark.parametrize("recipe", ["current", "block"])
def test_computed_again_inside_the_recipe(recipe: str) -> None:
    config = asked(recipe, recompute="block")
    engine = build_engine(config, alone())
    again = updates(engine, alone(), config, range(1), evaluate=False)
    for module in matrices(engine).values():
        assert module.seen == [RECIPES[recipe]] * 2 * 6
    plain = build_engine(asked(recipe), alone())
    assert updates(plain, alone(), asked(recipe), range(1), evaluate=False) == again


def scales(engine: Any, config: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = fp8.state(engine.model, config.precision).get("fp8", {})
    return found


def test_delayed_scaling_is_saved_and_loaded() -> None:
    config = asked("delayed")
    engine = build_engine(config, alone())
    at_start = scales(engine, config)
    assert len(at_start) == 3 * 7 * 2 * 2
    assert "blocks.2.mlp.down.scaling_bwd.amax_history" in at_start
    assert all((t == name.endswith("scale")).all() for name, t in at_start.items())
    updates(engine, alone(), config, range(2))
    after = scales(engine, config)
    largest = engine.model.get_parameter("blocks.0.attention.q.weight").abs().max().item()
    weight_scale = after["blocks.0.attention.q.scaling_fwd.scale"][1].item()
    assert weight_scale == pytest.approx(448 / largest, rel=0.5)

    def fill(state: dict[str, Any]) -> None:
        assert state.keys() == {"other", "fp8"}
        for name, buffer in state["fp8"].items():
            if name.startswith("blocks.0"):
                buffer.copy_(after[name])

    # Of a run whose other blocks were in bfloat16, into an engine in use.
    fp8.loading(engine.model, config.precision, fill)({"other": {}})
    for name, tensor in scales(engine, config).items():
        assert torch.equal(tensor, (after if name.startswith("blocks.0") else at_start)[name])


def test_evaluation_leaves_no_trace() -> None:
    config = asked("delayed")
    engine = build_engine(config, alone())
    updates(engine, alone(), config, range(1), evaluate=False)
    before = scales(engine, config)
    engine.evaluate(batch(7, config)[:4] * 0)
    assert all(torch.equal(before[n], t) for n, t in scales(engine, config).items())


@pytest.mark.slow
def test_scales_in_checkpoints(train: Train, cli: Train, tmp_path: Path, on_a_cpu: None) -> None:
    """A run in two parts has those of a run in one; branches go from bfloat16 to FP8 and back."""
    whole, parts, bf16 = (tmp_path / name for name in ("whole", "parts", "bf16"))
    short = ("eval.every=0 steps", "schedule.total=10 steps")
    delayed = ("precision=fp8", "precision.recipe=delayed")
    assert train(whole, *delayed, *short, "schedule.total=20 steps") == 0
    assert train(parts, *delayed, *short) == 0
    assert cli("train", f"resume={parts}", "schedule.total=20 steps") == 0
    assert_same_bits(tensors(parts, 20), tensors(whole, 20))
    assert len(tensors(whole, 20)["fp8"]) == 2 * 7 * 2 * 2
    assert train(bf16, "precision=bf16", *short) == 0
    ask = ("at=[10 steps]", "cooldown.length=10 steps")
    assert cli("branch", "apply", f"parent={bf16}", *ask, *delayed) == 0
    assert cli("branch", "apply", f"parent={whole}", *ask, "precision=bf16") == 0
    (to_fp8,) = tmp_path.glob("bf16.*")
    (to_bf16,) = tmp_path.glob("whole.*")
    saved, other = tensors(to_fp8, 20), tensors(to_bf16, 20)
    history = saved["fp8"]["blocks.0.mlp.up.scaling_fwd.amax_history"]
    assert int((history[:, 0] > 0).sum()) == 10 * 2, "of its own passes alone"
    assert "fp8" not in other
    assert saved["model"].keys() == other["model"].keys()


def test_other_recipes_have_no_state() -> None:
    for recipe in ("current", "block"):
        engine = build_engine(asked(recipe), alone())
        updates(engine, alone(), asked(recipe), range(1))
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
