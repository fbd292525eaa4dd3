"""Saves while training goes on: copy to host memory, then write in a thread."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from llm_pretrain.checkpoint import manifest
from llm_pretrain.checkpoint.planner import PiecePlanner
from llm_pretrain.checkpoint.staging import Stager
from llm_pretrain.checkpoint.store import CheckpointStore, Meta
from llm_pretrain.checkpoint.writer import HashingWriter
from llm_pretrain.errors import UserError
from llm_pretrain.world import World

T = TypeVar("T")


class _SaveError(Exception):
    """A save failed on some rank; the message is that rank's."""


class Saver:
    """Writes one checkpoint at a time; an error of a save is raised by the next call.

    All ranks call together, and what fails on one of them is raised on all.
    """

    def __init__(self, store: CheckpointStore, world: World) -> None:
        self._store = store
        self._world = world
        self._stager = Stager(world.rank, world.size)
        self._planner = PiecePlanner()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.seconds = 0.0
        """How long the longest save took until it was complete."""

    @property
    def failed(self) -> bool:
        """Whether the last save ended with an error on this rank, which `wait` would raise."""
        return self._error is not None

    def start(self, state: dict[str, Any], meta: dict[str, Any]) -> float:
        """Copy `state` to host memory and write it in the background; returns seconds stalled.

        Waits for the previous save first, and raises as `wait` does. `state` is one of
        `engine.base`; `meta` has the fields of Meta but the stall.
        """
        began = time.perf_counter()
        self.wait()
        staged = self._stager.copy(state)
        stall = time.perf_counter() - began
        full = Meta(**meta, stall_seconds=round(stall, 4))
        self._thread = threading.Thread(target=self._write, args=(staged, full), name="saver")
        # Only a save that waits for a lost rank is ever left behind when the process ends.
        self._thread.daemon = True
        self._thread.start()
        return stall

    def wait(self) -> None:
        """Wait until the running save is complete.

        Raises UserError when a rank could not write, LostRankError when one is gone.
        """
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self, timeout: float | None = None) -> None:
        """Wait until nothing is written any more, failed or not, or for `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _write(self, staged: dict[str, Any], meta: Meta) -> None:
        began = time.perf_counter()
        try:
            with self._world.watched():
                self._write_all(staged, meta)
            self.seconds = max(self.seconds, time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001  (whatever it was belongs to the trainer)
            self._error = error

    def _write_all(self, staged: dict[str, Any], meta: Meta) -> None:
        world, store = self._world, self._store
        temporary = store.temporary(meta.step)
        try:
            self._together(lambda: store.begin(meta.step) if world.main else None)
            parts = world.gather(self._together(lambda: self._write_shards(staged, temporary)))
            files = {name: entry for part in parts for name, entry in part.items()}
            self._together(lambda: store.publish(meta, files) if world.main else None)
        except _SaveError as error:
            if world.main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"{store.path(meta.step)}: the checkpoint could not be written ({error}); earlier "
                "ones are intact: mend that and run the same command again"
            ) from error

    def _together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; when a disk fails on one, every rank raises _SaveError."""
        result, reason, other = None, None, None
        try:
            result = action()
        except OSError as error:
            reason = self._reason(error)
        except CheckpointException as error:
            other = error
        reasons = [r for r in self._world.gather(reason) if r]
        if reasons:
            raise _SaveError("; ".join(reasons[:3]))
        if other is not None:
            # No disk failed anywhere, so it is a defect. Its own type is no Exception.
            raise RuntimeError(str(other)) from other
        return cast(T, result)

    def _write_shards(self, staged: dict[str, Any], folder: Path) -> dict[str, manifest.FileEntry]:
        world, planner, writer = self._world, self._planner, HashingWriter(folder)
        planner.reuse = all(world.gather(planner.prepare(staged)))
        try:
            save(
                staged,
                storage_writer=writer,
                planner=planner,
                process_group=world.io_group,
                no_dist=world.size == 1,
            )
        except CheckpointException as error:
            if writer.failure is not None:
                raise writer.failure from error
            raise
        return writer.entries

    def _reason(self, error: OSError) -> str:
        """What failed on this rank, in the words of the operating system."""
        where = f"rank {self._world.rank}: " if self._world.size > 1 else ""
        file = f"{Path(error.filename).name}: " if error.filename else ""
        lost = isinstance(error, FileNotFoundError)
        hint = "; every rank must see the run directory" if lost else ""
        return f"{where}{file}{error.strerror or error}{hint}"
