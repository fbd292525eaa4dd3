"""Which checkpoints to keep: the newest, every n-th, and all that a branch needs."""

from collections.abc import Callable, Iterable

from llm_pretrain import atomic
from llm_pretrain.checkpoint.store import CheckpointStore


def kept(steps: Iterable[int], last: int, every: int, pinned: Iterable[int]) -> set[int]:
    """The steps to keep: the `last` newest, multiples of `every` (0: none), all `pinned`."""
    ordered = sorted(steps)
    multiples = {s for s in ordered if every and s % every == 0}
    return set(ordered[-last:]) | multiples | (set(pinned) & set(ordered))


def prune(
    store: CheckpointStore, last: int, every: int, planned: set[int], pinned: Callable[[], set[int]]
) -> list[int]:
    """Delete what is not kept; returns the deleted steps.

    A branch writes its pin first and looks for the checkpoint after. So a checkpoint is first
    taken out of sight, and put back if a pin appeared meanwhile: no branch can lose its start.
    """
    steps = store.steps()
    deleted = []
    for step in sorted(set(steps) - kept(steps, last, every, planned | pinned())):
        hidden = store.root / f".hidden-{store.path(step).name}"
        store.path(step).rename(hidden)
        if step in pinned():
            hidden.rename(store.path(step))
        else:
            atomic.remove_folder(hidden)
            deleted.append(step)
    return deleted


def restore_hidden(store: CheckpointStore) -> None:
    """Put back what a process killed inside `prune` left out of sight."""
    for hidden in store.root.glob(".hidden-*"):
        target = store.root / hidden.name.removeprefix(".hidden-")
        if not target.exists():
            hidden.rename(target)
