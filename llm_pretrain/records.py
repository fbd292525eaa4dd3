"""What run.json and job.json hold: who a run is, how it stands, and the job it was handed to."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llm_pretrain import atomic
from llm_pretrain.config.diff import fingerprint, own_trajectory
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.provenance import Code
from llm_pretrain.schedule.schedule import schedule_of

State = Literal["created", "running", "interrupted", "failed", "finished"]


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a branch started from."""

    run: str
    """Id of the parent run."""
    step: int
    """Updates done at the branch point."""


@dataclass(frozen=True)
class Fingerprints:
    """What config.yaml decides, as hashes: a thousand runs are compared without parsing it.

    Equal hashes mean the same run. Others may too, when another version of the program noted them,
    so only the configs themselves can tell.
    """

    file: str
    """SHA-256 of config.yaml: the rest is about these bytes, and says nothing of edited ones."""
    trajectory: str
    """Of the fields that decide the parameters, without the schedule and the ancestors."""
    schedule: str
    """Of the rates along the whole lineage."""

    @classmethod
    def of(cls, config: TrainConfig, content: bytes) -> "Fingerprints":
        """Of a config and the bytes that it is written as."""
        return cls(
            file=hashlib.sha256(content).hexdigest(),
            trajectory=fingerprint(own_trajectory(config)),
            schedule=schedule_of(config).fingerprint(),
        )

    def describe(self, content: bytes) -> bool:
        """Whether these are the bytes that they are about."""
        return hashlib.sha256(content).hexdigest() == self.file


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
    lr_source: str | None = None
    """Where a learning rate is from that was not given as a number."""
    prediction: dict[str, float] | None = None
    """What a branch was expected to end at when it was made: loss, low, high in nats."""
    fingerprints: Fingerprints | None = None
    """Noted whenever config.yaml is written; None: by a version that did not."""
    git: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """Each start of the run: time, host, first step, device and the choices made there."""
    finished: str | None = None

    @property
    def begin(self) -> int:
        """First step that the run trains itself."""
        return self.parent.step if self.parent else 0

    @classmethod
    def read(cls, path: Path) -> "Record":
        """From a file. Raises UserError when it is none."""
        try:
            data = json.loads(path.read_text())
            parent, prints = data.pop("parent"), data.pop("fingerprints", None)
            return cls(
                parent=Parent(**parent) if parent else None,
                fingerprints=Fingerprints(**prints) if prints else None,
                **data,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: not a run record ({error})") from error

    def write(self, path: Path) -> None:
        """Replace a file in one step. Raises OSError."""
        _write(self, path)


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

    @classmethod
    def read(cls, path: Path) -> "Job | None":
        """From a file, if it is there. Raises UserError when it is none."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a job ({error})") from error

    def write(self, path: Path) -> None:
        """Replace a file in one step. Raises OSError."""
        _write(self, path)


def new_record(
    name: str,
    *,
    total: int,
    overrides: Sequence[str] = (),
    parent: Parent | None = None,
    parent_dir: str | None = None,
    parent_checkpoint: str | None = None,
    lr_source: str | None = None,
    prediction: Mapping[str, float] | None = None,
    code: Code | None = None,
) -> Record:
    """The record of a run that is about to be created.

    `code`: the program that makes it, where many are made at once; else it is looked up.
    """
    code = code or Code.current()
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
        lr_source=lr_source,
        prediction=dict(prediction) if prediction else None,
        git=code.git,
        versions=code.versions,
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(record: Record | Job, path: Path) -> None:
    atomic.write_text(path, json.dumps(asdict(record), indent=2) + "\n")
