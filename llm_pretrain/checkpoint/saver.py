"""Saves while training goes on: copy to host memory, then write in a thread."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from llm_pretrain.checkpoint import manifest
from llm_pretrain.checkpoint.store import CheckpointStore, Meta
from llm_pretrain.errors import UserError
from llm_pretrain.world import World

T = TypeVar("T")


class _SaveError(Exception):
    """A save failed on some rank; the message is that rank's."""


class Saver:
    """Writes one checkpoint at a time; an error of a save is raised by the next call."""

    def __init__(self, store: CheckpointStore, world: World) -> None:
        self._store = store
        self._world = world
        # Host buffers are kept between saves: allocating them costs more than the copy.
        self._buffers: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, state: dict[str, Any], meta: dict[str, Any]) -> float:
        """Copy `state` to host memory and write it in the background; returns seconds stalled.

        Waits for the previous save first. `meta` has the fields of Meta but the stall.
        """
        began = time.perf_counter()
        self.wait()
        staged = self._buffers = stage(state, self._buffers)
        stall = time.perf_counter() - began
        full = Meta(**meta, stall_seconds=round(stall, 4))
        self._thread = threading.Thread(target=self._write, args=(staged, full), name="saver")
        self._thread.start()
        return stall

    def wait(self) -> None:
        """Wait until the running save is complete. Raises UserError when it failed."""
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise UserError(str(error)) from error

    def join(self) -> None:
        """Wait until nothing is written any more, whether it failed or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Any], meta: Meta) -> None:
        try:
            self._write_all(state, meta)
        # CheckpointException derives from BaseException; whatever it was belongs to the trainer.
        except (Exception, CheckpointException) as error:  # noqa: BLE001
            self._error = error

    def _write_all(self, state: dict[str, Any], meta: Meta) -> None:
        world, store = self._world, self._store
        temporary = store.temporary(meta.step)
        try:
            self._together(lambda: store.begin(meta.step) if world.main else None)
            parts = world.gather(self._together(lambda: self._write_shards(state, temporary)))
            files = {name: entry for part in parts for name, entry in part.items()}
            self._together(lambda: store.publish(meta, files) if world.main else None)
        except _SaveError as error:
            if world.main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"{store.path(meta.step)}: the checkpoint could not be written ({error}); "
                "earlier checkpoints are intact: make room and run the same command again"
            ) from error

    def _together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; when it fails on one, every rank raises _SaveError."""
        result, failure = None, None
        try:
            result = action()
        except (OSError, CheckpointException, RuntimeError) as error:
            failure = _cause(error)
        failures = [f for f in self._world.gather(failure) if f]
        if failures:
            raise _SaveError(failures[0])
        return cast(T, result)

    def _write_shards(self, state: dict[str, Any], folder: Path) -> dict[str, manifest.FileEntry]:
        world = self._world
        writer = FileSystemWriter(folder, sync_files=True)
        save(state, storage_writer=writer, process_group=world.io_group, no_dist=world.size == 1)
        own = sorted(folder.glob(f"__{world.rank}_*"))
        if world.main:
            own.append(folder / ".metadata")
        return {path.name: manifest.entry(path) for path in own}


def stage(live: dict[str, Any], buffers: dict[str, Any]) -> dict[str, Any]:
    """Copy a nested dict of tensors to host memory, into `buffers` where they fit."""
    copied = _copy_tree(live, buffers)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


def _copy_tree(live: dict[str, Any], buffers: dict[str, Any]) -> dict[str, Any]:
    copies: dict[str, Any] = {}
    for key, value in live.items():
        old = buffers.get(key)
        if isinstance(value, dict):
            copies[key] = _copy_tree(value, old if isinstance(old, dict) else {})
            continue
        if not isinstance(old, torch.Tensor) or old.shape != value.shape:
            old = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        copies[key] = old.copy_(value.detach(), non_blocking=value.is_cuda)
    return copies


def _cause(error: BaseException) -> str:
    """The innermost reason, in the words of the operating system where it has some."""
    if isinstance(error, CheckpointException):
        inner = next(iter(error.failures.values()))[0]
        return _cause(inner) if isinstance(inner, BaseException) else str(inner)
    while error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "strerror", None) or error).strip().splitlines()[-1]
