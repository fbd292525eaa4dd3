"""The command: what it prints, what it refuses, and how published runs compare."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import ROOT, command

Cli = Callable[..., int]
HEADLINE = ("model=llama_70b", "engine.shard=64", "engine.tensor=4", "cluster.nodes=1024")


def asked(cli: Cli, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    """The estimate as a program reads it."""
    assert cli("estimate", *overrides, "--json") in (0, 3)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_headline_works_in_a_process_of_its_own() -> None:
    done = command("estimate", *HEADLINE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "70,553,706,496 parameters, bf16, on 1024 x 4 NVIDIA GH200 120GB",
        "replicate 16 x shard 64 x tensor 4",
        "fits: ",
        "FSDP all-gather, forward",
        "HSDP all-reduce",
        "tokens/s/device",
        "Assumed:",
        "Sources of cluster=alps_clariden:",
    ):
        assert words in done.stdout
    parts = 4 * 70_553_706_496 / 256 / 2**30
    assert f"{parts:.2f}" in next(
        line for line in done.stdout.splitlines() if "parameters  " in line
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.tensr=4"], ["did you mean 'engine.tensor'"]),
        (["cluster=h100"], ["did you mean 'h100_ib'"]),
        (["cluster.nodes=3", "engine.shard=8"], ["engine:", "does not make 12 ranks"]),
        (["cluster.nodes=3"], ["data.global_batch: 4096 does not divide over 12 ranks"]),
        (["data.micro_batch=3"], ["data.global_batch: 4096", "data.micro_batch=3"]),
        (["engine.tensor=8"], ["engine.tensor: 8", "cluster.devices_per_node=4"]),
        (["model.kv_heads=2", "engine.tensor=4"], ["engine.tensor: 4", "model.kv_heads=2"]),
        (["engine=deepspeed", "engine.tensor=2"], ["engine.tensor: 2 is for engine=fsdp"]),
        (["--multirun", "cluster.nodes=1,2"], ["--multirun: estimate knows --json"]),
    ],
)
def test_what_cannot_work_is_refused(
    cli: Cli, capsys: pytest.CaptureFixture[str], overrides: list[str], words: list[str]
) -> None:
    assert cli("estimate", *overrides) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_what_does_not_fit_is_said_and_has_its_exit_code(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("model=llama_8b", "cluster.devices_per_node=1", "data.global_batch=4")
    assert cli("estimate", *ask) == 3
    assert "does not fit: " in capsys.readouterr().out
    assert cli("estimate", *ask, "cluster.hardware.memory=1000") == 0
    assert "fits: " in capsys.readouterr().out
    host = ("cluster.hardware.memory=1000", "cluster.hardware.host_memory=50")
    assert cli("estimate", *ask, *host) == 3
    assert "(host memory)" in capsys.readouterr().out


def test_an_unknown_machine_gets_no_invented_numbers(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("estimate", "model=demo", "cluster=local", "data.global_batch=8") == 0
    out = capsys.readouterr().out
    assert "fits: unknown, cluster.hardware.memory is not known" in out
    assert "cluster.hardware.matmul is not known" in out
    assert "tokens/s" not in out
    found = asked(cli, capsys, "model=demo", "data.global_batch=8", "precision=fp32")
    assert found["speed"] is None
    assert "precision=fp32" in found["unknown"][0]


def test_offloaded_state_is_on_the_host(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("model=llama_1b", "cluster.nodes=2", "data.global_batch=32")
    kept, gone = (asked(cli, capsys, *ask, *more) for more in ((), ("engine.offload=all",)))
    state = ("parameters", "gradients", "moments")
    before, after = kept["memory"]["block"], gone["memory"]["block"]
    part = 4 * kept["parameters"] / 8
    assert sum(before["held"][name] for name in ("parameters", "moments")) == 3 * part
    assert [after["held"][name] for name in state] == [0, 0, 0]
    assert sum(after["offloaded"].values()) == 4 * part
    assert after["host"] == 7 * part
    assert before["device"] - after["device"] >= 3 * part
    assert before["staging"] == after["staging"] == 3 * part


# What others have measured, in tokens a second and device. No pipeline and no fused kernels here,
# no stragglers in the estimate, other power limits: only the size of the number must be right.
PUBLISHED = {
    "Apertus 70B, 4096 GH200, tensor 4, pipeline 8 (technical report)": (HEADLINE, 723, 1.25),
    "8B, GH200, Megatron (lsaie-ss26-gipfelsturm)": (
        ("model=llama_8b", "data.global_batch=8", "data.micro_batch=2"),
        10_900,
        1.25,
    ),
    "8B, torchtitan, 8 H100 of 500 W, not compiled (llama3_h100_202412_torchtitan.md)": (
        (
            *("model=llama_8b", "cluster=h100_ib", "data.sequence_length=8192"),
            *("data.global_batch=16", "data.micro_batch=2"),
        ),
        5_762,
        1.75,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(cli: Cli, capsys: pytest.CaptureFixture[str], name: str) -> None:
    overrides, published, factor = PUBLISHED[name]
    found = asked(cli, capsys, *overrides)
    rate = found["speed"]["tokens_per_second"]
    assert published / factor < rate < published * factor
    assert found["verdict"].startswith("fits")
    assert found["checkpoint"] == 12 * found["parameters"]


def test_the_parts_of_an_update_add_up(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ("fsdp", "deepspeed"):
        ask = ("model=llama_1b", f"engine={engine}", "cluster.nodes=2", "data.global_batch=64")
        slow = ("cluster.hardware.between_nodes=0.1",)
        for more in ((), slow):
            found = asked(cli, capsys, *ask, *more)
            speed = found["speed"]
            parts = ("products", "attention", "other", "exposed", "waiting")
            assert sum(speed[part] for part in parts) == pytest.approx(speed["step"])
            tokens = speed["tokens_per_second"] * speed["step"] * 8
            assert tokens == pytest.approx(64 * 4096)
        assert speed["waiting"] + speed["exposed"] > 0.9 * speed["step"]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from llm_pretrain.cli import dispatch; dispatch(['estimate', '--help'])\n"
        "from llm_pretrain.errors import guarded\n"
        "assert guarded(dispatch, ['estimate', 'engine.tensr=1']) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("cluster.hardware.inside_node", "alps_clariden", "engine.shard", "Exit codes"):
        assert word in done.stdout
