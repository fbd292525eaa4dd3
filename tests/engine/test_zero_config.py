"""What DeepSpeed is asked for, and what is refused before it is imported."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest

from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.layout import check_engine
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.engine.zero_config import require_deepspeed, zero_config
from llm_pretrain.errors import UserError
from tests.support import ROOT


def settings(device: str = "cpu", clip: float = 1.0, **engine: Any) -> dict[str, Any]:
    config = TrainConfig(
        engine=EngineConfig(name="deepspeed", **engine), optimizer=OptimizerConfig(grad_clip=clip)
    )
    return zero_config(config, device)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    else:
        yield value


PARSE = """
import json, sys, torch
import deepspeed
from deepspeed.runtime.config import DeepSpeedConfig
parsed = DeepSpeedConfig(json.load(sys.stdin))
zero = parsed.zero_config
print(json.dumps({
    "stage": int(zero.stage),
    "clip": parsed.gradient_clipping,
    "batch": [parsed.train_batch_size, parsed.gradient_accumulation_steps],
    "dtypes": [str(parsed.communication_data_type), str(parsed.grad_accum_dtype)],
    "low precision": [
        parsed.float16_config.enabled, parsed.bfloat16_config.enabled, parsed.torch_autocast_enabled
    ],
    "offloaded": [
        zero.offload_optimizer and zero.offload_optimizer.device,
        zero.offload_param and zero.offload_param.device,
    ],
    "pinned": zero.offload_optimizer and zero.offload_optimizer.pin_memory,
    "overlap": zero.overlap_comm,
    "linear": zero.memory_efficient_linear,
    "whole": zero.param_persistence_threshold,
    "reports": [parsed.wall_clock_breakdown, parsed.steps_per_print, parsed.dump_state],
}))
"""


def test_deepspeed_understands_it_as_meant() -> None:
    asked = settings("cuda", clip=0.25, zero_stage=3, offload="optimizer")
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "stage": 3,
        "clip": 0.25,
        "batch": [1, 1],
        "dtypes": ["torch.float32", "fp32"],
        "low precision": [False, False, False],
        "offloaded": ["cpu", None],
        "pinned": True,
        "overlap": True,
        "linear": True,
        "whole": ModelConfig().width,
        "reports": [False, None, False],
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_nothing_is_left_to_deepspeed(stage: int) -> None:
    asked = settings(zero_stage=stage)
    assert "auto" not in list(leaves(asked))
    assert asked["zero_optimization"]["stage"] == stage
    assert "optimizer" not in asked, "ours is passed in"
    assert "scheduler" not in asked, "the rate is a function of the step"


@pytest.mark.parametrize(
    ("offload", "optimizer", "parameters"),
    [("none", None, None), ("optimizer", "cpu", None), ("all", "cpu", "cpu")],
)
def test_offload(offload: str, optimizer: str | None, parameters: str | None) -> None:
    zero = settings("cuda", zero_stage=3, offload=offload)["zero_optimization"]
    devices = [
        part and part["device"] for part in (zero["offload_optimizer"], zero["offload_param"])
    ]
    assert devices == [optimizer, parameters]


def test_memory_is_pinned_for_a_gpu_only() -> None:
    for device, pinned in (("cuda", True), ("cpu", False)):
        zero = settings(device, zero_stage=3, offload="all")["zero_optimization"]
        assert zero["offload_optimizer"]["pin_memory"] is pinned
        assert zero["offload_param"]["pin_memory"] is pinned


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "deepspeed is not installed; pip install 'llm-pretrain[deepspeed]'"),
        ("0.19.7", "deepspeed 0.19.7 is too old; pip install 'deepspeed>=0.19.8'"),
        ("0.9.10+abc", "deepspeed 0.9.10+abc is too old"),
    ],
)
def test_missing_or_old(monkeypatch: pytest.MonkeyPatch, found: str | None, message: str) -> None:
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("llm_pretrain.engine.zero_config.version", version)
    with pytest.raises(UserError, match=r"^engine: ") as error:
        require_deepspeed()
    assert message in str(error.value)
    assert "use engine=fsdp" in str(error.value)


@pytest.mark.parametrize("found", ["0.19.8", "0.20.0rc1", "1.0", "0.19.10+cu130"])
def test_recent_enough(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("llm_pretrain.engine.zero_config.version", lambda _: found)
    require_deepspeed()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compile": True, "zero_stage": 3}, "engine.compile: at zero_stage=3"),
        ({"offload": "all", "zero_stage": 2}, "engine.offload: 'all' needs engine.zero_stage=3"),
        ({"shard": 2}, "engine.shard: 2 is for engine=fsdp"),
        ({"tensor": 2}, "engine.tensor: 2 is for engine=fsdp"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_engine(TrainConfig(engine=EngineConfig(name="deepspeed", **fields)))


@pytest.mark.parametrize("stage", [1, 2])
def test_compiled_blocks_at_stages_1_and_2(stage: int) -> None:
    check_engine(TrainConfig(engine=EngineConfig(name="deepspeed", compile=True, zero_stage=stage)))
