"""A run is a directory; this is the only code that knows its layout."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from llm_pretrain import atomic, lock, provenance
from llm_pretrain.config.compose import dump, read
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError

State = Literal["created", "running", "interrupted", "failed", "finished"]


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a branch started from."""

    run: str
    """Id of the parent run."""
    step: int
    """Updates done at the branch point."""


@dataclass(frozen=True)
class Record:
    """run.json: who a run is, where it came from and how it stands."""

    id: str
    name: str
    parent: Parent | None
    state: State
    created: str
    step: int = 0
    total: int = 0
    reason: str | None = None
    """Why the run failed, or what stopped it."""
    parent_dir: str | None = None
    """Parent's directory, relative to this run's."""
    parent_checkpoint: str | None = None
    """Hash of the parent's checkpoint manifest."""
    overrides: list[str] = field(default_factory=list)
    """What differs from the parent, or what the command line asked for."""
    git: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """Each start of the run: time, host, first step, device and the choices made there."""
    finished: str | None = None


@dataclass(frozen=True)
class Job:
    """job.json: the job that a run was handed to, as its submitter knew it.

    Another file than run.json, since the job may have begun to write there.
    """

    name: str
    """In the scheduler; unlike any other, so that a job is found by it whose submitter died before
    it could write down the number."""
    submitted: str
    """When."""
    code: str
    """The snapshot of the code that the job runs."""
    id: str | None = None
    """Number in the scheduler, NUMBER_INDEX in an array."""
    index: int = 0
    """Place in an array."""
    error: str | None = None
    """Why the scheduler refused it, in its own words."""


class Run:
    """A run directory that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self.record_path = path / "run.json"
        self.metrics_path = path / "metrics.jsonl"
        self.log_path = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.tokenizer_path = path / "tokenizer.json"
        self.pins_path = path / "pins"
        self.lock_path = path / "lock"
        self.job_path = path / "job.json"
        self.claim_path = path / "submitting"
        self.rollcall_path = path / "rollcall"
        self.failed_nodes_path = path / "failed-nodes"

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run at `path`. Raises UserError when there is none."""
        run = cls(path)
        if not run.record_path.is_file() or not run.config_path.is_file():
            what = "has no run.json and config.yaml" if path.is_dir() else "does not exist"
            raise UserError(f"{path}: not a run ({what})")
        return run

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether `path` holds a run."""
        return (path / "run.json").is_file()

    @classmethod
    def create(cls, config: TrainConfig, record: Record, tokenizer: Path | None = None) -> "Run":
        """Create the directory in one step, or return the one that another process created.

        `tokenizer` is copied into it: a branch keeps its parent's whatever its data are.

        Raises UserError when the place is taken by something else or cannot be written.
        """
        path = Path(config.run.dir)
        temporary = atomic.temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.remove_leftovers(path.parent)
            (temporary / "checkpoints").mkdir(parents=True)
            (temporary / "pins").mkdir()
            atomic.write_text(temporary / "config.yaml", dump(config))
            atomic.write_text(temporary / "run.json", _encode(record))
            if tokenizer is not None:
                shutil.copyfile(tokenizer, temporary / "tokenizer.json")
            published = atomic.publish_folder(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(f"run.dir: {path} cannot be written ({error.strerror})") from error
        if not published:
            shutil.rmtree(temporary)
            if not cls.exists(path):
                raise UserError(f"run.dir: {path} exists and is not a run; choose another place")
        return cls.open(path)

    @cached_property
    def config(self) -> TrainConfig:
        """The resolved config."""
        return read(self.config_path)

    @property
    def record(self) -> Record:
        """run.json as it is now."""
        try:
            data = json.loads(self.record_path.read_text())
            parent = data.pop("parent")
            return Record(parent=Parent(**parent) if parent else None, **data)
        except (OSError, json.JSONDecodeError, TypeError, KeyError) as error:
            raise UserError(f"{self.record_path}: not a run record ({error})") from error

    def update(self, **changes: Any) -> None:
        """Change fields of run.json in one step."""
        atomic.write_text(self.record_path, _encode(replace(self.record, **changes)))

    def rewrite_config(self, config: TrainConfig) -> None:
        """Replace config.yaml, as a resume with an allowed difference does."""
        atomic.write_text(self.config_path, dump(config))
        self.__dict__.pop("config", None)

    @property
    def status(self) -> str:
        """The state, with what run.json cannot know: 'lost' when its process is gone, and what
        became of a submission. A scheduler is not asked."""
        state = self.record.state
        if state == "running" and lock.holder(self.lock_path) is None:
            return "lost"
        job = self.job if state == "created" else None
        if job is not None:
            return "submitted" if job.error is None else "not submitted"
        return state

    @property
    def job(self) -> Job | None:
        """The job that it was last handed to. Raises UserError when that cannot be read."""
        try:
            return Job(**json.loads(self.job_path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.job_path}: not a job ({error})") from error

    def write_job(self, job: Job) -> None:
        """Replace job.json in one step; only under `claim_path`."""
        atomic.write_text(self.job_path, json.dumps(asdict(job), indent=2) + "\n")

    def hold(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Lock the directory. Raises RunInUseError naming host and pid of a live holder.

        `patience`: seconds to wait for a holder to end.
        """
        return lock.hold(self.lock_path, patience)

    @property
    def identity(self) -> str | None:
        """The id, or None where there is no readable run.json."""
        try:
            return self.record.id
        except UserError:
            return None

    @property
    def begin(self) -> int:
        """First step that this run trains itself."""
        parent = self.record.parent
        return parent.step if parent else 0

    def parent_run(self) -> "Run | None":
        """The run this one branched from; None for a trunk. Raises UserError when it is gone."""
        record = self.record
        if record.parent is None:
            return None
        place = Path(os.path.normpath(self.path / (record.parent_dir or "..")))
        if Run(place).identity == record.parent.run:
            return Run(place)
        for run in scan(self.path.parent):
            if run.identity == record.parent.run:
                return run
        raise UserError(
            f"{self.path}: its parent run '{record.parent.run}' is not at {place} "
            f"nor elsewhere in {self.path.parent}"
        )

    def pin(self, step: int, child: str) -> bool:
        """Ask that the checkpoint at `step` is never deleted, for the branch `child`.

        Returns False when it was asked already.
        """
        return atomic.create_exclusive(self.pins_path / f"{step:06d}-{child}", f"{child}\n")

    def unpin(self, step: int, child: str) -> None:
        """Withdraw a pin of a branch that was not created after all."""
        (self.pins_path / f"{step:06d}-{child}").unlink(missing_ok=True)

    def pinned(self) -> set[int]:
        """Steps that branches started from."""
        return {int(p.name.split("-")[0]) for p in self.pins_path.glob("[0-9]*-*")}

    def append_metrics(self, *rows: dict[str, Any]) -> None:
        """Add rows to metrics.jsonl, each one line, on disk before this returns."""
        with self.metrics_path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut by a crash is left out."""
        return [row for _, row in self._metric_lines()]

    def rewind_metrics(self, step: int) -> None:
        """Forget what was measured after `step`, since it will be trained again."""
        if self.metrics_path.exists():
            kept = [line for line, row in self._metric_lines() if row["step"] <= step]
            atomic.write_text(self.metrics_path, "".join(kept))

    def _metric_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self.metrics_path.exists():
            return
        with self.metrics_path.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield line, json.loads(line)


def new_record(
    name: str,
    *,
    total: int,
    overrides: Sequence[str] = (),
    parent: Parent | None = None,
    parent_dir: str | None = None,
    parent_checkpoint: str | None = None,
) -> Record:
    """The record of a run that is about to be created."""
    return Record(
        id=f"{name}-{uuid.uuid4().hex[:8]}",
        name=name,
        parent=parent,
        state="created",
        created=now(),
        step=parent.step if parent else 0,
        total=total,
        parent_dir=parent_dir,
        parent_checkpoint=parent_checkpoint,
        overrides=list(overrides),
        git=provenance.git(),
        versions=provenance.versions(),
    )


def scan(root: Path) -> list[Run]:
    """The runs in `root` (itself, or folders in it), oldest first, unreadable ones last.

    Raises UserError when `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = [root, *sorted(p for p in root.iterdir() if not p.name.startswith("."))]
    runs = [Run(p) for p in folders if Run.exists(p)]
    return sorted(runs, key=lambda run: (run.identity is None, _created(run), run.path))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _created(run: Run) -> str:
    return run.record.created if run.identity else ""


def _encode(record: Record) -> str:
    return json.dumps(asdict(record), indent=2) + "\n"
