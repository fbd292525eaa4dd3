"""A run is a directory; this is the only code that knows its layout."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_pretrain import atomic, lock
from llm_pretrain.config.compose import dump, read
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError, writing
from llm_pretrain.records import Fingerprints, Job, Record

_BLOCK = 2**16
"""Bytes to read at a time from the end of a file."""


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
        self.flight_path = path / "flight-recorder"
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
    def check(cls, path: Path) -> None:
        """Raise UserError when no run could be created at `path`, before work is done for it.

        What is tried is a folder in the nearest one above that exists; it is gone afterwards.
        """
        with writing("run.dir", path):
            if cls.exists(path):
                return
            if path.exists() and not (path.is_dir() and not any(path.iterdir())):
                raise _taken(path)
            above = next(folder for folder in path.absolute().parents if folder.exists())
            probe = atomic.temporary_beside(above / path.name)
            probe.mkdir()
            probe.rmdir()

    @classmethod
    def create(
        cls,
        config: TrainConfig,
        record: Record,
        tokenizer: Path | None = None,
        more: Callable[["Run"], None] | None = None,
    ) -> "Run":
        """Create the directory in one step, or return the one that another process created.

        `tokenizer` is copied into it: a branch keeps its parent's whatever its data are. `more`
        writes what else it begins with.

        Raises UserError when the place is taken by something else or cannot be written.
        """
        path = Path(config.run.dir)
        temporary = atomic.temporary_beside(path)
        try:
            (temporary / "checkpoints").mkdir(parents=True)
            (temporary / "pins").mkdir()
            run = cls(temporary)
            replace(record, fingerprints=run._write_config(config)).write(run.record_path)
            if tokenizer is not None:
                shutil.copyfile(tokenizer, temporary / "tokenizer.json")
            if more is not None:
                more(run)
            published = atomic.publish_folder(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(f"run.dir: {path} cannot be written ({error.strerror})") from error
        if not published:
            shutil.rmtree(temporary)
            if not cls.exists(path):
                raise _taken(path)
        return cls.open(path)

    @cached_property
    def config(self) -> TrainConfig:
        """The resolved config."""
        return read(self.config_path)

    @property
    def record(self) -> Record:
        """run.json as it is now. Raises UserError when it cannot be read."""
        return Record.read(self.record_path)

    def update(self, **changes: Any) -> None:
        """Change fields of run.json in one step."""
        replace(Record.read(self.record_path), **changes).write(self.record_path)

    def rewrite_config(self, config: TrainConfig) -> None:
        """Replace config.yaml, as a resume with an allowed difference does."""
        noted = self._write_config(config)
        # Until they are replaced too, the old fingerprints are not about the new file: not used.
        self.update(fingerprints=noted)
        self.__dict__.pop("config", None)

    def _write_config(self, config: TrainConfig) -> Fingerprints:
        text = dump(config)
        atomic.write_text(self.config_path, text)
        return Fingerprints.of(config, text.encode())

    @property
    def fingerprints(self) -> Fingerprints | None:
        """What run.json has noted of config.yaml, None unless it is about the file as it is now.

        Raises UserError when one of them cannot be read.
        """
        noted = self.record.fingerprints
        try:
            return noted if noted and noted.describe(self.config_path.read_bytes()) else None
        except OSError as error:
            raise UserError(f"{self.config_path}: cannot be read ({error.strerror})") from error

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
        return Job.read(self.job_path)

    def write_job(self, job: Job) -> None:
        """Replace job.json in one step; only under `claim_path`."""
        job.write(self.job_path)

    def failed_nodes(self) -> list[str]:
        """Nodes that its jobs avoid."""
        return self.failed_nodes_path.read_text().split() if self.failed_nodes_path.exists() else []

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
        return self.record.begin

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
                return Run(run.path)
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

    def newest_metrics(self, *names: str) -> dict[str, float]:
        """The newest value of each that was measured, read from the end as far as it takes."""
        found: dict[str, float] = {}
        for line in _backwards(self.metrics_path):
            row = json.loads(line)
            found.update((n, row[n]) for n in names if n in row and n not in found)
            if len(found) == len(names):
                break
        return found

    def newest_row(self, name: str) -> dict[str, Any]:
        """The newest row that has a value of that name; empty without one."""
        rows = (json.loads(line) for line in _backwards(self.metrics_path))
        return next((row for row in rows if name in row), {})

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


def _backwards(path: Path) -> Iterator[bytes]:
    """The complete lines of a file, the last one first; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        last = True
        while end > 0:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            # Behind the last newline is nothing, or a line that a crash has cut.
            yield from reversed(lines[:-1] if last else lines)
            last, end = last and not lines, begin
        if not last:
            yield rest


class Seen(Run):
    """A run as one look finds it: run.json and job.json are read when asked for, and then kept."""

    @cached_property
    def record(self) -> Record:
        """run.json as it was at first sight."""
        return super().record

    @cached_property
    def job(self) -> Job | None:
        """job.json as it was at first sight."""
        return super().job


def scan(root: Path) -> list[Seen]:
    """The runs in `root` (itself, or folders in it), oldest first, unreadable ones last.

    Raises UserError when `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = [root, *(p for p in root.iterdir() if not p.name.startswith("."))]
    runs = [Seen(p) for p in folders if Run.exists(p)]
    return sorted(runs, key=lambda run: (run.identity is None, _created(run), run.path))


def _taken(path: Path) -> UserError:
    return UserError(f"run.dir: {path} exists and is not a run; choose another place")


def _created(run: Run) -> str:
    return run.record.created if run.identity else ""
