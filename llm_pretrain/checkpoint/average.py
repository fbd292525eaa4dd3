"""The mean of the parameters in several checkpoints, in float64 until the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import Reader, describe, fill
from llm_pretrain.errors import UserError
from llm_pretrain.parts import local

_MODEL = "model."


class Mean:
    """Means of the model's tensors in one or several checkpoints, made one after the other.

    In memory are one tensor in float64 and one as it was saved; of the checkpoints only the pieces
    that are read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """`folders`: checkpoints that were verified. Raises UserError when their models differ."""
        self._readers = [Reader(folder) for folder in folders]
        self.described = _model(folders[0])
        """Name -> shape and type of each mean, which has the type of what was saved."""
        for folder in folders[1:]:
            _check_same(folders[0], self.described, folder, _model(folder))

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The means of the tensors with these names."""
        return {name: self._mean(name) for name in names}

    def _mean(self, name: str) -> Tensor:
        like = self.described[name]
        value = torch.empty_like(like, device="cpu")
        first, *others = self._readers
        fill(first, {"model": {name: value}})
        if not others:
            return value
        total = value.double()
        for reader in others:
            fill(reader, {"model": {name: value}})
            total += value
        return value.copy_(total.div_(len(self._readers)))


@torch.no_grad()
def fill_mean(folders: Sequence[Path], state: dict[str, Any], *, group: Any = None) -> None:
    """Fill the model's tensors of an engine's `state` with their means, and nothing else.

    Each rank keeps its own part of the sums in float64 meanwhile, on the host. `group`: as for
    `fill`. Raises UserError when a file cannot be read.
    """
    model = {name: value.detach() for name, value in state["model"].items()}
    sums = {
        name: torch.zeros(local(value).shape, dtype=torch.float64) for name, value in model.items()
    }
    for folder in folders:
        fill(folder, {"model": dict(model)}, group=group)
        for name, value in model.items():
            sums[name] += local(value).cpu()
    for name, value in model.items():
        local(value).copy_(sums.pop(name).div_(len(folders)))


def verified(store: CheckpointStore, steps: Sequence[int]) -> list[Path]:
    """Where the checkpoints of these steps are, each checked to the last byte.

    Raises UserError for one that does not exist, DamagedCheckpointError for a damaged one.
    """
    for step in steps:
        store.verify(step)
    return [store.path(step) for step in steps]


def _model(folder: Path) -> dict[str, Tensor]:
    return {
        name.removeprefix(_MODEL): tensor
        for name, tensor in describe(folder).items()
        if name.startswith(_MODEL)
    }


def _check_same(
    first: Path, tensors: dict[str, Tensor], other: Path, others: dict[str, Tensor]
) -> None:
    for name in sorted(tensors.keys() | others.keys()):
        one, two = tensors.get(name), others.get(name)
        if one is None or two is None or one.shape != two.shape:
            shapes = [tuple(t.shape) if t is not None else "absent" for t in (one, two)]
            raise UserError(
                f"{other}: its {name} is {shapes[1]}, in {first} it is {shapes[0]}; only "
                "checkpoints of the same model have a mean"
            )
