"""Which rank writes which piece, in the terms of torch.distributed.checkpoint."""

import dataclasses
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from llm_pretrain.checkpoint.staging import Piece


class PiecePlanner(DefaultSavePlanner):
    """Plans the pieces of a staged state, and remembers the plan for later saves of the same ones.

    Planning gathers every rank's pieces on one rank. torch's own memory of plans, a switch of the
    class that this derives from, is shared by all planners of the process, and so by all its runs.
    """

    reuse = False
    """Whether the next save uses the plan of the one before; the same on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: dict[MetadataIndex, Piece] = {}
        self._items: list[WriteItem] = []
        self._known: list[WriteItem] | None = None
        self._final = SavePlan([])
        self._metadata = Metadata({})

    def prepare(self, staged: dict[str, Any]) -> bool:
        """Take the pieces of the next save; whether this rank has the same ones as last time."""
        super().set_up_planner(staged)
        self._pieces = {
            MetadataIndex(name, piece.offsets): piece
            for name, pieces in self.state_dict.items()
            for piece in pieces
        }
        self._items = [_item(index, piece) for index, piece in self._pieces.items()]
        return self._items == self._known

    def create_local_plan(self) -> SavePlan:
        """See SavePlanner."""
        items = [] if self.reuse else self._items
        return SavePlan(items, planner_data=self.mappings)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """See SavePlanner. Of a piece that several ranks have, one writes it."""
        if not self.reuse:
            all_plans, self._metadata = super().create_global_plan(all_plans)
        # The storage layer completes what it is given.
        return all_plans, dataclasses.replace(self._metadata)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """See SavePlanner."""
        if not self.reuse:
            self._known, self._final = self._items, super().finish_plan(new_plan)
        return self._final

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """See SavePlanner."""
        return self._pieces[write_item.index].data


def _item(index: MetadataIndex, piece: Piece) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(piece.offsets), piece.data.shape)
    properties = TensorProperties(dtype=piece.data.dtype)
    # A whole tensor is a shard like any other: the only one.
    data = TensorWriteData(chunk, properties, piece.shape)
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)
