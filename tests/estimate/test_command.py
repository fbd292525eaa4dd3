"""The command: what it says, what it refuses, and when."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from llm_pretrain.config.compose import compose
from llm_pretrain.estimate.memory import HOST_RESERVE
from llm_pretrain.estimate.plan import estimate
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
        (
            ["cluster.nodes=3", "engine.shard=8"],
            [
                *("engine:", "does not make 12 ranks"),
                "cluster.nodes=3 x cluster.devices_per_node=4 are 12 ranks",
            ],
        ),
        (
            ["cluster.nodes=3"],
            [
                "data.global_batch: 4096 does not divide over 12 ranks",
                "cluster.nodes=3 x cluster.devices_per_node=4 are 12 ranks",
            ],
        ),
        (["data.micro_batch=3"], ["data.global_batch: 4096", "data.micro_batch=3"]),
        (["engine.tensor=8"], ["engine.tensor: 8", "cluster.devices_per_node=4"]),
        (["model.kv_heads=2", "engine.tensor=4"], ["engine.tensor: 4", "model.kv_heads=2"]),
        (["engine=deepspeed", "engine.tensor=2"], ["engine.tensor: 2 is for engine=fsdp"]),
        (
            ["--multirun", "cluster.nodes=1,2"],
            ["--multirun: estimate has no such option; valid: --json"],
        ),
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
    assert after["host"] == 7 * part + HOST_RESERVE
    assert before["device"] - after["device"] >= 3 * part
    assert before["staging"] == after["staging"] == 3 * part


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


def test_a_refusal_needs_no_torch() -> None:
    code = (
        "import sys; from llm_pretrain.cli import dispatch\n"
        "from llm_pretrain.errors import guarded\n"
        "for wrong in ('engine.tensr=1', 'engine.tensor=8', 'engine.shard=3', 'cluster.nodes=3',\n"
        "              'data.micro_batch=3', 'model.kv_heads=3'):\n"
        "    assert guarded(dispatch, ['estimate', wrong]) == 2, wrong\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_shows_the_defaults_of_an_estimate() -> None:
    code = (
        "import sys; from llm_pretrain.cli import dispatch; dispatch(['estimate', '--help'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    config = compose([], name="estimate")
    for group in (config.model, config.engine, config.cluster.hardware):
        assert dataclasses.is_dataclass(group)
    for line in (
        "model=llama_8b precision=bf16 engine=fsdp cluster=alps_clariden",
        f"model.width={config.model.width} ",
        f"data.sequence_length={config.data.sequence_length} ",
        f"data.global_batch={config.data.global_batch} ",
        f"engine.recompute={config.engine.recompute} ",
        f"cluster.hardware.inside_node={config.cluster.hardware.inside_node} ",
        "3 it does not fit",
    ):
        assert line in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_exit_codes_are_in_the_general_help(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--help") == 0
    said = " ".join(capsys.readouterr().out.partition("Exit codes:")[2].split())
    for code in (
        "0 done",
        "1 a run failed or another rank was lost",
        "2 bad input",
        "3 estimate:",
        "75 stopped",
    ):
        assert code in said


def test_an_experiment_is_planned_as_train_would_start_it(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(cli, capsys, "experiment=demo")
    layers, width, ffn, vocabulary = 4, 128, 384, 2048
    block = 4 * width * width + 3 * width * ffn + 2 * width  # attention, SwiGLU, two norms
    assert found["parameters"] == vocabulary * width + layers * block + width == 1_115_264
    assert found["passes"] == 1
    assert found["layout"] == {"replicate": 1, "shard": 1, "context": 1, "tensor": 1}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_who_leaves_early(flags: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llm_pretrain.cli", "estimate", "model=demo"),
            *("data.global_batch=8", "cluster.hardware.memory=1", *flags),
        ],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 3


@pytest.mark.parametrize(("nodes", "ranks_bound"), [(1, True), (64, False)])
def test_few_ranks_write_at_their_own_rate(nodes: int, ranks_bound: bool) -> None:
    ask = ("model=llama_8b", f"cluster.nodes={nodes}", "cluster.hardware.file_system_per_rank=0.5")
    found = estimate(compose([*ask, "data.sequence_length=512"], name="estimate"))
    size = 12 * found.parameters
    expected = size / (4 * nodes) / 0.5e9 if ranks_bound else size / 23e9
    assert found.saving == pytest.approx(expected, rel=1e-3)
    unknown = compose([*ask[:2], "cluster.hardware.file_system_per_rank=null"], name="estimate")
    assert estimate(unknown).saving is None
