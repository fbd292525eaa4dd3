"""The command export: its options, files of a given size, memory for one of them at a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from llm_pretrain.world import World
from tests.checkpoint.states import meta
from tests.support import ROOT

Cli = Callable[..., int]
END = "<|endoftext|>"


def make_run(place: Path, *overrides: str) -> Run:
    """A run with a checkpoint at step 5 that was never trained."""
    config = compose(["experiment=demo", f"run.dir='{place}'", *overrides])
    tokenizer = place.parent / "tokenizer.json"
    added = {"id": 0, "content": END, "special": True, "single_word": False, "lstrip": False}
    added |= {"rstrip": False, "normalized": False}
    content = {"version": "1.0", "added_tokens": [added]}
    content |= {"model": {"type": "BPE", "vocab": {END: 0}, "merges": []}}
    tokenizer.write_text(json.dumps(content))
    run = Run.create(config, new_record("run", total=10), tokenizer)
    draw = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = Transformer(config.model)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    state = {name: torch.randn(shape, generator=draw) / 10 for name, shape in shapes.items()}
    saver = Saver(CheckpointStore(run.checkpoints), World(0, Layout(), torch.device("cpu")))
    saver.start({"model": state}, meta(5))
    saver.wait()
    return run


def test_a_size_of_files(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert cli("export", str(run.path), str(tmp_path / "one")) == 0
    assert cli("export", str(run.path), str(tmp_path / "many"), "max_shard_size=500KB") == 0
    assert (tmp_path / "one" / "model.safetensors").exists()
    files = list((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 3
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("one", "many"))
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(one(ids).logits, many(ids).logits)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    for name in ("one", "many"):
        assert (tmp_path / name / "tokenizer.json").read_text() == run.tokenizer_path.read_text()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("max_shard_size=5", "max_shard_size: '5' is no size of a file; give a number with its"),
        ("max_shard_size=0GB", "max_shard_size: '0GB'"),
        ("max_shard_size=big", "max_shard_size: 'big'"),
        ("shard_size=5GB", "shard_size: no such option; did you mean 'max_shard_size'"),
        ("step=last", "step: 'last' is no step"),
        ("--fast", "--fast: export has no such option; valid: step"),
        ("step=4", "no checkpoint at step 4; there are checkpoints at 5"),
    ],
)
def test_bad_options(
    option: str, message: str, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "model.width=32", "model.ffn=32", "model.layers=1")
    assert cli("export", str(run.path), str(tmp_path / "hf"), option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_a_run_with_an_equals_sign_in_its_name(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "sweep,optimizer.lr=1e-3"
    make_run(place, "model.width=32", "model.ffn=32", "model.layers=1")
    assert cli("export", str(place), str(tmp_path / "hf"), "step=5") == 0


MEASURE = """
import sys
from pathlib import Path
from llm_pretrain.weights.command import export
from llm_pretrain.checkpoint.tensors import describe

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

describe(Path(sys.argv[3]))
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
assert export([sys.argv[1], sys.argv[2], f"max_shard_size={sys.argv[4]}"]) == 0
print(status("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_holds_one_file_at_a_time(tmp_path: Path) -> None:
    """A model of 220 MB in files of 20 MB; what is read in one go is 32 MiB at most."""
    sizes = ("model.width=1024", "model.ffn=4096", "model.layers=3", "model.vocab_size=4096")
    run = make_run(
        tmp_path / "run", *sizes, "model.heads=8", "model.kv_heads=8", "model.head_dim=128"
    )
    place = CheckpointStore(run.checkpoints).path(5)
    grown = {}
    for size in ("20MB", "5GB"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(run.path), str(tmp_path / size), str(place), size],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        grown[size] = int(done.stdout.splitlines()[-1])
    whole = sum(path.stat().st_size for path in (tmp_path / "5GB").glob("*.safetensors"))
    assert whole > 210e6
    assert grown["20MB"] < 140e6
    # The same measure sees a whole model in memory.
    assert grown["5GB"] > whole
