"""Bad input ends with exit code 2, one clear message, and nothing left behind."""

import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from llm_pretrain.checkpoint.store import CheckpointStore
from tests.support import metrics, record

Train = Callable[..., int]


def refused(
    capsys: pytest.CaptureFixture[str], code: int, *words: str, lines: int | None = 1
) -> None:
    message = capsys.readouterr().err
    errors = message[message.index("error: ") :]
    assert code == 2
    for word in words:
        assert word in errors
    assert "Traceback" not in message
    if lines:
        assert len(errors.splitlines()) == lines, errors


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["optimizer.lrr=1"], ["optimizer.lrr", "did you mean"]),
        (["schedule.cooldown.shape=liner"], ["schedule.cooldown.shape", "linear"]),
        (["schedule.total=-3 steps"], ["schedule.total", "-3 steps"]),
        (["schedule.total=300"], ["schedule.total", "300", "unit"]),
        (["schedule.warmup=50 steps"], ["schedule.warmup", "50", "40"]),
        (["schedule.cooldown.length=41 steps"], ["schedule.cooldown.length", "41"]),
        (["data.global_batch=9"], ["data.global_batch", "9"]),
        (["model.vocab_size=399"], ["model.vocab_size", "399", "400"]),
        (["engine.device=cuda"], ["engine.device", "cuda"]),
        (["engine.tensor=3"], ["engine.tensor", "3", "model.heads=2"]),
        (["engine.shard=2"], ["shard=2", "1 ranks"]),
        (["run.name=a/b"], ["run.name", "a/b"]),
        ([f"run.name={'a' * 201}"], ["run.name", "201 bytes", "200"]),
        (["average.windows=10 steps"], ['a list has brackets: "average.windows=[10 steps]"']),
        (["plan=[{ends: [20 steps], cooldown: {length: 30 steps}}]"], ["cooldown.length", "30"]),
        (["plan=[{at: [20 steps], overrides: ['optimzer.lr=3']}]"], ["optimzer.lr", "optimizer"]),
    ],
)
def test_values(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    overrides: list[str], words: list[str],
) -> None:  # fmt: skip
    refused(capsys, train(tmp_path / "run", *overrides), *words)
    assert not list(tmp_path.iterdir())


def test_engine_that_is_not_installed(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("llm_pretrain.engine.zero_config.version", version)
    code = train(tmp_path / "run", "engine=deepspeed")
    refused(capsys, code, "engine", "pip install 'llm-pretrain[deepspeed]'", "engine=fsdp")
    assert not list(tmp_path.iterdir())


def test_empty_corpus(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    code = train(tmp_path / "run", f"data.sources.words.path={empty}", f"data.cache={tmp_path}/c")
    refused(capsys, code, "words")
    assert not (tmp_path / "run").exists()


def test_corpus_that_is_not_there(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train(tmp_path / "run", "data.sources.words.path=/nowhere/*.jsonl")
    refused(capsys, code, "data.sources.words.path", "/nowhere/*.jsonl")
    assert not list(tmp_path.iterdir())


def test_vocabulary_of_a_given_tokenizer(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "first", "schedule.total=10 steps") == 0
    capsys.readouterr()
    tokenizer = f"data.tokenizer.path={tmp_path / 'first' / 'tokenizer.json'}"
    code = train(tmp_path / "second", tokenizer, "model.vocab_size=100")
    refused(capsys, code, "model.vocab_size", "100", "400")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "/dev/null/run"])
def test_place_that_cannot_be_written(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    code = train(Path(place), f"data.cache={tmp_path / 'cache'}")
    refused(capsys, code, "run.dir", place, "cannot be written")
    assert not list(tmp_path.iterdir())  # nothing was tokenised for it


def test_cache_that_cannot_be_written(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, train(tmp_path / "run", "data.cache=/proc/nowhere"), "data.cache", "/proc")
    assert not list(tmp_path.iterdir())


def test_place_that_is_taken(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(capsys, train(tmp_path), "run.dir", "exists and is not a run")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_run_with_other_settings(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "schedule.total=10 steps") == 0
    before = metrics(tmp_path / "run")
    capsys.readouterr()
    code = train(tmp_path / "run", "schedule.total=10 steps", "optimizer.lr=1e-4")
    refused(capsys, code, "optimizer.lr: 0.003 -> 0.0001", "resume=", lines=None)
    assert metrics(tmp_path / "run") == before


class TestBranch:
    """Wrong parents, wrong steps, damaged checkpoints."""

    @pytest.fixture
    def trunk(self, train: Train, tmp_path: Path) -> Path:
        assert train(tmp_path / "tiny", "schedule.total=20 steps") == 0
        return tmp_path / "tiny"

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, trunk: Path) -> Iterator[None]:
        before = sorted(trunk.rglob("*"))
        yield
        assert sorted(trunk.rglob("*")) == before
        assert [p.name for p in trunk.parent.iterdir()] == ["tiny"]

    def test_parent_that_is_no_run(
        self, trunk: Path, cli: Train, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = cli("branch", "apply", f"parent={trunk.parent}/other", "at=[10 steps]")
        refused(capsys, code, "other", "not a run")

    def test_no_parent(self, cli: Train, capsys: pytest.CaptureFixture[str]) -> None:
        refused(capsys, cli("branch", "apply", "at=[10 steps]"), "parent: missing")

    def test_no_plan(self, trunk: Path, cli: Train, capsys: pytest.CaptureFixture[str]) -> None:
        refused(capsys, cli("branch", "apply", f"parent={trunk}"), "at: missing", "no plan")

    def test_step_without_checkpoint(
        self, trunk: Path, cli: Train, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = cli("branch", "apply", f"parent={trunk}", "at=[10 steps, 15 steps]")
        refused(capsys, code, "no checkpoint at step 15", "10 and 20")

    def test_damaged_checkpoint(
        self, trunk: Path, cli: Train, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = trunk / "checkpoints" / "step-000010" / "__0_0.distcp"
        content = bytearray(file.read_bytes())
        content[1000] ^= 1
        file.write_bytes(content)
        code = cli("branch", "apply", f"parent={trunk}", "at=[10 steps]")
        refused(capsys, code, "damaged", "step-000010", "__0_0.distcp")

    @pytest.mark.parametrize(
        "ask,word",
        [
            ("cooldown.shape=sqrt", "cooldown.shape"),
            ("cooldown.length=20", "cooldown.length"),
            ("cooldown.length=100%", "cooldown.length"),
            ("model.width=5", "model.width"),
            ("at=[10]", "at"),
            ("at=20 steps", 'a list has brackets: "at=[20 steps]"'),
            ("extend=10 steps", "extend"),
            ("atx=[10 steps]", "atx"),
            ("optimizer.lr=1e-3,2e-3", "optimizer.lr"),
            ("precision=null", "precision"),
        ],
    )
    def test_values(
        self, trunk: Path, cli: Train, capsys: pytest.CaptureFixture[str], ask: str, word: str
    ) -> None:
        refused(capsys, cli("branch", "plan", f"parent={trunk}", "at=[10 steps]", ask), word)


def test_damaged_latest_checkpoint_is_named_and_the_one_before_used(
    train: Train, cli: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "whole") == 0
    assert train(tmp_path / "hurt") == 0
    (tmp_path / "hurt" / "checkpoints" / "step-000040" / ".metadata").write_bytes(b"x")
    data = record(tmp_path / "hurt")
    (tmp_path / "hurt" / "run.json").write_text(json.dumps({**data, "state": "interrupted"}))
    capsys.readouterr()
    assert cli("train", f"resume={tmp_path / 'hurt'}") == 0
    assert "step-000040: damaged checkpoint (.metadata has 1 bytes" in capsys.readouterr().err
    assert metrics(tmp_path / "hurt") == metrics(tmp_path / "whole")
    assert CheckpointStore(tmp_path / "hurt" / "checkpoints").verify(40).step == 40


def test_resume_of_what_is_no_run(
    cli: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, cli("train", f"resume={tmp_path}/x"), "x: not a run")
    refused(capsys, cli("train", "resume="), "resume: missing", "resume=runs/demo")
    refused(capsys, cli("train", f"resume={tmp_path}/{'x' * 300}"), "File name too long")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_disk_full_while_saving(
    train: Train, cli: Train, small_disk: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place = small_disk / "run"
    code = train(place, "checkpoint.keep_last=9")
    refused(capsys, code, "could not be written", "No space left on device", "intact", lines=None)
    assert record(place)["state"] == "failed"
    store = CheckpointStore(place / "checkpoints")
    saved = store.steps()
    assert saved
    for step in saved:
        store.verify(step)
    assert {p.name for p in store.root.iterdir()} == {store.path(s).name for s in saved}
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert cli("train", f"resume={place}") == 0
    assert train(tmp_path / "whole", "checkpoint.keep_last=9") == 0
    assert metrics(place) == metrics(tmp_path / "whole")


def test_a_failed_save_ends_the_run_before_the_next(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Less than a checkpoint, more than everything else.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        long = ("schedule.total=1000 steps", "checkpoint.every=100 steps", "eval.every=0 steps")
        code = train(tmp_path / "run", *long)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(capsys, code, "step-000100", "could not be written", "File too large", lines=None)
    assert 100 <= metrics(tmp_path / "run")[-1]["step"] < 200
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()
