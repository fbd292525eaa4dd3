"""The checkpoints of one run: find, verify, publish, delete. Imports no torch."""

import bisect
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_pretrain import atomic
from llm_pretrain.checkpoint import manifest
from llm_pretrain.errors import DamagedCheckpointError, UserError

META = "meta.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself beside its tensors."""

    step: int
    """Updates done."""
    tokens: int
    """Tokens consumed since step 0 of the oldest ancestor."""
    run: str
    """Id of the run that wrote it."""
    fingerprints: dict[str, str]
    """Hashes of schedule, data and config: what the run was when it wrote this."""
    schedule: dict[str, Any]
    """The phases, to show and compare when a resume has other ones; rates never come from here."""
    config: dict[str, Any]
    """The fields that decide the training, flat, to name those that differ."""
    world_size: int
    engine: str
    created: str
    stall_seconds: float = 0.0
    """How long training waited for the copy to host memory."""
    format: int = field(default=_FORMAT)


class CheckpointStore:
    """The folder `checkpoints/` of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or would be."""
        return self.root / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending; their contents are not verified."""
        try:
            # A listing says which entries are folders; to ask for each would be a request each.
            with os.scandir(self.root) as entries:
                found = [_NAME.fullmatch(entry.name) for entry in entries if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(match[1]) for match in found if match)

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint at `step`."""
        return self.path(step).is_dir()

    def identity(self, step: int) -> str:
        """The hash that lineage records."""
        return manifest.identity(self.path(step))

    def meta(self, step: int) -> Meta:
        """What the checkpoint of `step` says of itself. Raises DamagedCheckpointError."""
        path = self.path(step)
        try:
            meta = Meta(**json.loads((path / META).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DamagedCheckpointError(f"{path}: damaged checkpoint ({META}: {error})") from error
        if meta.format != _FORMAT:
            raise UserError(f"{path}: format {meta.format}; this version reads {_FORMAT}")
        return meta

    def verify(self, step: int, rank: int = 0, size: int = 1) -> Meta:
        """Check every byte of a checkpoint, or of the part of its files that is `rank`'s of `size`.

        Raises DamagedCheckpointError naming the file.
        """
        path = self.path(step)
        if not path.is_dir():
            raise UserError(f"{path}: no checkpoint at step {step}; {describe_steps(self.steps())}")
        manifest.verify(path, rank, size)
        return self.meta(step)

    def temporary(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it is complete."""
        return self.root / f".tmp-{self.path(step).name}"

    def begin(self, step: int) -> None:
        """Make an empty folder to write the checkpoint of `step` into."""
        temporary = self.temporary(step)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def publish(self, meta: Meta, files: dict[str, manifest.FileEntry]) -> None:
        """Complete the folder from `begin` with meta and manifest, and rename it into place."""
        temporary = self.temporary(meta.step)
        atomic.write_text(temporary / META, json.dumps(asdict(meta), indent=2) + "\n")
        manifest.write(temporary, {**files, META: manifest.entry(temporary / META)})
        if not atomic.publish_folder(temporary, self.path(meta.step)):
            shutil.rmtree(temporary)

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint so that its step can be written again."""
        target = self.root / f"damaged-{self.path(step).name}"
        if target.exists():
            atomic.remove_folder(target)
        self.path(step).rename(target)
        return target

    def sweep(self) -> None:
        """Remove what a killed process left half written or half deleted; under the run's lock."""
        for pattern in (".tmp-*", ".*.tmp"):
            for path in self.root.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def describe_steps(steps: list[int], near: int | None = None) -> str:
    """The steps that exist (ascending), or the nearest to `near`, for a message."""
    if not steps:
        return "the run has no checkpoint yet"
    if near is None:
        return f"there are checkpoints at {', '.join(map(str, steps))}"
    below, above = bisect.bisect_left(steps, near), bisect.bisect_right(steps, near)
    nearest = steps[max(0, below - 1) : below] + steps[above : above + 1]
    return f"the nearest are at {' and '.join(map(str, nearest))}"
