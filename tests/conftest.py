"""Fixtures shared by all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Two test processes on two cores: more threads would only wait for each other. It also fixes the
# order of sums, which the bitwise tests rely on.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.ranks.commands import Zygote
from tests.ranks.commands import zygote as start_zygote
from tests.support import command, measure_once, tiny, write_corpus

measure_once()


LONGEST = (
    *("test_demo.py", "test_lost_rank.py", "test_losses.py", "test_jobs.py", "test_readme.py"),
    *("test_optimizers.py", "test_equivalence.py", "test_gpu.py", "test_kill.py", "test_fp8.py"),
    *("test_zero.py", "test_memory.py", "test_branches.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the longest of them at the head, so that none ends alone."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl file with a few hundred documents."""
    path = tmp_path_factory.mktemp("corpus") / "words.jsonl"
    write_corpus(path)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for prepared tokens that all tests of a session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_corpus(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point the tiny experiment at the test corpus."""
    monkeypatch.setenv("TINY_CORPUS", str(corpus))
    yield corpus


@pytest.fixture(scope="session")
def zygote(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Runs commands on one or several ranks that need not start Python."""
    with start_zygote(corpus, tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="session")
def deepspeed_zygote(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """The same with DeepSpeed, whose import takes seconds and changes torch: so apart. It imports
    some of itself when it makes an engine."""
    late = ("module_inject.auto_ep_layer", "runtime.superoffload.superoffload_stage3")
    late += ("runtime.zero.muon.muon_optimizer", "ops.op_builder.all_ops")
    modules = ("llm_pretrain.engine.deepspeed", *(f"deepspeed.{name}" for name in late))
    with start_zygote(corpus, tmp_path_factory.mktemp("logs"), *modules) as started:
        yield started


@pytest.fixture
def train(tiny_corpus: Path, cache: Path) -> Callable[..., int]:
    """Train a tiny run in this process: train(place, *overrides) -> exit code."""
    from llm_pretrain.errors import guarded
    from llm_pretrain.train.command import train as train_command

    def run(place: Path, *overrides: str) -> int:
        arguments = tiny(place, f"data.cache={cache}", *overrides)
        return guarded(train_command, arguments)

    return run


@pytest.fixture
def cli() -> Callable[..., int]:
    """Run a command in this process: cli("branch", "plan", ...) -> exit code."""
    from llm_pretrain.cli import dispatch
    from llm_pretrain.errors import guarded

    return lambda *arguments: guarded(dispatch, arguments)


@pytest.fixture
def process() -> Callable[..., object]:
    """Run a command in a process of its own."""
    return command
