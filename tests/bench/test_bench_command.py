"""The command end to end on a CPU, its numbers against their definitions, and what it refuses."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ranks.commands import Zygote
from tests.support import ROOT, command

Cli = Callable[..., int]
WIDTH, LAYERS, HEADS, GROUPS, HEAD_DIM, FFN, VOCABULARY = 64, 2, 4, 2, 16, 96, 512
LENGTH, ROWS, PASSES, STEPS = 32, 4, 2, 4
MODEL = (
    *(f"model.width={WIDTH}", f"model.layers={LAYERS}", f"model.heads={HEADS}"),
    *(f"model.kv_heads={GROUPS}", f"model.head_dim={HEAD_DIM}", f"model.ffn={FFN}"),
    *(f"model.vocab_size={VOCABULARY}", "data.tokenizer.vocab_size=512"),
    *(f"data.sequence_length={LENGTH}", f"data.micro_batch={ROWS}"),
)
TOKENS = ROWS * PASSES * LENGTH


def flops(scores: float) -> float:
    """Operations of training on one token; `scores`: keys that a position looks at."""
    queries, keys = HEADS * HEAD_DIM, GROUPS * HEAD_DIM
    weights = LAYERS * (2 * WIDTH * queries + 2 * WIDTH * keys + 3 * WIDTH * FFN)
    weights += WIDTH * VOCABULARY
    return 6 * weights + 12 * LAYERS * queries * scores


def figures(value: Any) -> Iterator[dict[str, Any]]:
    """Every figure in the JSON."""
    if isinstance(value, dict):
        if "samples" in value:
            yield value
        for inner in value.values():
            yield from figures(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from figures(inner)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """Standard output, the JSON, and the folder of a bench of two passes a step."""
    place = tmp_path_factory.mktemp("bench")
    out, trace = place / "found.json", place / "trace.json"
    done = command(
        *("bench", *MODEL, f"data.global_batch={ROWS * PASSES}", f"--steps={STEPS}"),
        *("--out", str(out), "--trace", str(trace)),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("bench: ") for line in done.stderr.splitlines()), done.stderr
    return done.stdout, json.loads(out.read_text()), place


def test_it_prints_tables_and_writes_what_it_says(ran: tuple[str, dict[str, Any], Path]) -> None:
    shown, _, place = ran
    assert shown.endswith(f"\nwrote {place / 'found.json'}, {place / 'trace.json'}\n")
    assert {p.name for p in place.iterdir()} == {"found.json", "trace.json"}
    for words in (
        "1 x CPU, fp32, fsdp; a step is 2 x 4 sequences of 32 tokens on each",
        "fp8 matmul: not on this device",
        "attention, forward and backward",
        "MFU",
        "largest part: ",
        "the host waits for the device within the step: never",
        "not measured",
    ):
        assert words in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 100
    assert "bench: step" in (place / "trace.json").read_text()


def test_every_figure_has_its_unit_and_samples(ran: tuple[str, dict[str, Any], Path]) -> None:
    found = list(figures(ran[1]))
    units = {figure["name"]: figure["unit"] for figure in found}
    assert units["fp32 matmul 1024"] == "TFLOP/s"
    assert units["copy in device memory"] == "GB/s"
    assert units["step"] == "s"
    assert units["tokens per second and device"] == "tokens/s"
    for figure in found:
        samples = figure["samples"]
        assert len(samples) >= 3 and min(samples) > 0, figure["name"]
        assert figure["median"] == statistics.median(samples)
        assert (figure["min"], figure["max"]) == (min(samples), max(samples))


def test_tokens_and_mfu_follow_from_the_seconds(ran: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = ran
    step = found["step"]
    seconds = step["seconds"]["median"]
    assert (step["passes"], step["tokens"]) == (PASSES, TOKENS)
    assert len(step["seconds"]["samples"]) == STEPS
    for mine, time in zip(
        step["tokens_per_second"]["samples"], step["seconds"]["samples"], strict=True
    ):
        assert mine == pytest.approx(TOKENS / time)
    peak = max(f["median"] for f in found["rates"] if f["name"].startswith("fp32 matmul"))
    for counting, scores in (("full square", LENGTH), ("causal", (LENGTH + 1) / 2)):
        rate = flops(scores) * TOKENS / seconds
        assert step["tflops_per_device"][counting] == pytest.approx(rate / 1e12)
        (used,) = (u for u in step["utilisation"] if u["counting"] == counting)
        assert used["name"] == "mfu"
        # Nothing is known of a CPU's datasheet.
        assert used["against"] == "measured matmul"
        assert used["value"] == pytest.approx(rate / (peak * 1e12))


def test_modules_alone_count_their_own_operations(ran: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = ran
    alone = {m["name"]: m for m in found["modules"]}
    queries, keys = HEADS * HEAD_DIM, GROUPS * HEAD_DIM
    attention = 4 * queries * (LENGTH + 1) / 2
    matrices = 2 * WIDTH * (2 * queries + 2 * keys + 3 * FFN)
    expected = {
        "attention": attention,
        "one block": attention + matrices,
        "head with loss": 2 * WIDTH * VOCABULARY,
    }
    assert alone.keys() == expected.keys()
    for name, count in expected.items():
        for times, seconds, rate in zip(
            (1, 3), alone[name]["seconds"], alone[name]["rates"], strict=True
        ):
            done = rate["samples"][0] * 1e12 * seconds["samples"][0]
            assert done == pytest.approx(times * count * ROWS * LENGTH)


def test_the_parts_of_the_step_add_up(ran: tuple[str, dict[str, Any], Path]) -> None:
    profile = ran[1]["profile"]
    assert sum(profile["parts"].values()) == pytest.approx(profile["busy"])
    assert sum(profile["phases"].values()) == pytest.approx(profile["busy"])
    assert profile["busy"] + profile["outside_of_operators"] == pytest.approx(profile["wall"])
    spent = {name for name, seconds in profile["parts"].items() if seconds > 0}
    assert spent == {
        *("matrix products", "attention", "optimizer update", "norms, elementwise and the rest")
    }
    assert min(profile["phases"][name] for name in ("forward", "backward", "update")) > 0
    assert set(ran[1]["floors"]) == {"matrix products", "attention", "optimizer update"}


def test_no_value_is_asked_for_within_a_step(ran: tuple[str, dict[str, Any], Path]) -> None:
    assert ran[1]["profile"]["synchronisations_by_place"] == {}
    assert ran[1]["profile"]["synchronisations"] == 0


def test_memory_of_a_cpu_is_not_made_up(ran: tuple[str, dict[str, Any], Path]) -> None:
    memory = ran[1]["memory"]
    assert memory.keys() == {"unit", "estimated", "missing"}
    parameters = 4 * (flops(0) / 6 + (2 * LAYERS + 1) * WIDTH)
    # Parameters and two moments at least, and on this scale not a hundred times as much.
    assert 3 * parameters < memory["estimated"] < 100 * 3 * parameters


def test_it_says_what_it_measured_with(ran: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = ran
    assert found["command"][:2] == ["llm-pretrain", "bench"]
    assert found["device"] == "CPU"
    assert found["devices"] == 1
    assert found["versions"]["torch"]
    assert found["config"]["model"]["width"] == WIDTH
    assert found["computes"]["attention"]
    assert found["date"].startswith("20")


@pytest.mark.slow
def test_two_ranks_share_a_step(zygote: Zygote, tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    done = zygote.run(2, ["bench", *MODEL, "engine.shard=2", "--steps=3", f"--out={out}"])
    assert done.codes == [0, 0], done
    assert done.output(1) == ""
    found = json.loads(out.read_text())
    # Without data.global_batch, each has one pass of a micro-batch.
    assert found["devices"] == 2
    assert (found["step"]["passes"], found["step"]["tokens"]) == (1, 2 * ROWS * LENGTH)
    both, one = (
        found["step"][name]["median"]
        for name in ("tokens_per_second", "tokens_per_second_per_device")
    )
    assert both == pytest.approx(2 * one)
    assert found["profile"]["parts"]["communication"] > 0
    assert found["profile"]["synchronisations"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.widht=64"], ["did you mean 'model.width'"]),
        (["model=llama_2b"], ["model=llama_2b", "did you mean"]),
        (["data.micro_batch=3", "data.global_batch=8"], ["data.global_batch: 8"]),
        (["--steps", "0"], ["--steps: got '0'"]),
        (["--steps=two"], ["--steps: got 'two'"]),
        (["--out", "nowhere/bench.json"], ["--out: nowhere is no folder"]),
        (["--trace=nowhere/trace.json"], ["--trace: nowhere is no folder"]),
        (["--out", "."], ["--out: . is a folder"]),
        (["--out"], ["--out: needs a file"]),
        (["--json"], ["--json: bench has no such option; valid: --out, --steps, --trace"]),
        (["resume=runs/a"], ["resume=runs/a: bench measures a config"]),
        (["engine.shard=3"], ["engine:", "does not make 1 ranks"]),
    ],
)
def test_what_it_refuses(
    arguments: list[str], words: list[str], cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("bench", *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    for word in words:
        assert word in said.err


def test_help_and_bad_input_need_no_torch() -> None:
    code = (
        "import sys\nfrom llm_pretrain.cli import dispatch\n"
        "from llm_pretrain.errors import guarded\n"
        "assert guarded(dispatch, ['bench', '--help']) == 0\n"
        "assert guarded(dispatch, ['bench', 'model.widht=64']) == 2\n"
        "assert guarded(dispatch, ['bench', '--out', 'nowhere/bench.json']) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("--out FILE", "--trace FILE", "data.micro_batch=", "engine.compile=", "llama_1b"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
