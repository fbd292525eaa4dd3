"""A training state between ZeRO's flat pieces and named shards that every engine reads."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, empty

from llm_pretrain.engine.base import Remembered, State
from llm_pretrain.engine.zero_pieces import Pieces
from llm_pretrain.optim.base import Rule
from llm_pretrain.optim.piece import Piece
from llm_pretrain.world import World


class ZeroState:
    """Parameters and what an update rule remembers of them, each tensor cut by its rows.

    On the way each device holds one whole tensor at a time. All ranks must ask for the same tensors
    in the same order.
    """

    def __init__(self, rule: Rule, pieces: Pieces, world: World) -> None:
        """`rule`: of the pieces."""
        self._rule, self._pieces, self._world = rule, pieces, world
        self._host = init_device_mesh("cpu", (world.size,))
        self._devices = init_device_mesh(world.device.type, (world.size,))
        self._trained: dict[str, Tensor] | None = None
        """What the pieces hold in training, while they hold what is evaluated."""

    @property
    def pieces(self) -> Mapping[str, Piece]:
        """By the model's own names, with the values that are trained."""
        self.train()
        return self._pieces.named

    @torch.no_grad()
    def train(self) -> None:
        """Let the model compute at the point of training, if it does not."""
        if self._trained is None:
            return
        for name, values in self._trained.items():
            self._pieces.named[name].copy_(values)
        self._trained = None
        self._pieces.spread()

    @torch.no_grad()
    def evaluate(self) -> None:
        """Let the model compute what is evaluated, until `train` or until the pieces are used."""
        if self._trained is not None or not self._rule.averages:
            return
        self._trained = {name: p.detach().clone() for name, p in self._pieces.named.items()}
        for piece in self._pieces.named.values():
            piece.copy_(self._rule.readout(piece))
        self._pieces.spread()

    def written(self) -> None:
        """Other values are in the pieces."""
        self._pieces.spread()

    def state(self) -> State:
        """A function for each tensor that gives this rank's rows of it."""
        model = {name: partial(self._readout, p) for name, p in self.pieces.items()}
        return {"model": model, **self._of_rule(self.rows)}

    def load(self, fill: Callable[[State], None], saved: Collection[str] | None, step: int) -> bool:
        """See Engine. `fill` gets buffers for this rank's rows."""
        mine = self._of_rule(lambda piece, _: self.buffer(piece))
        found = Remembered.of(self._rule, mine, saved)
        # What is read out follows from the point at which training goes on.
        point = found.whole and self._rule.averages
        model = {} if point else {n: self.buffer(p) for n, p in self.pieces.items()}
        fill({"model": model, **found.state})
        for name, piece in self.pieces.items():
            state = found.state["optimizer"].pop(name) if found.whole else {}
            self.take(piece, state.pop("point") if point else model.pop(name), piece)
            for key, kept in self._rule.state[piece].items() if found.whole else ():
                if kept.ndim:
                    self.take(piece, state.pop(key), kept)
        found.begin(self._rule, step)
        self.written()
        return found.whole

    def _of_rule(self, leaf: Callable[[Piece, Tensor], Any]) -> State:
        """What the update rule remembers, and where training goes on if that is elsewhere."""
        own: dict[str, Any] = {}
        for name, piece in self.pieces.items():
            state = self._rule.state[piece]
            own[name] = {k: leaf(piece, t) if t.ndim else t for k, t in state.items()}
            if self._rule.averages:
                own[name]["point"] = leaf(piece, piece)
        shared = self._rule.shared
        return {"optimizer": own, **({"rule": dict(shared)} if shared else {})}

    def _readout(self, piece: Piece) -> DTensor:
        return self._rows(piece, self._rule.readout(piece))

    def rows(self, piece: Piece, values: Tensor) -> Callable[[], DTensor]:
        """What gives this rank's rows of a tensor of which each rank has `values` like its
        piece."""
        return partial(self._rows, piece, values)

    @torch.no_grad()
    def _rows(self, piece: Piece, values: Tensor) -> DTensor:
        whole = piece.assemble(values.detach().to(self._world.device), self.total)
        rows = whole.chunk(self._world.size)
        local = rows[self._world.rank] if self._world.rank < len(rows) else whole[:0]
        return DTensor.from_local(
            # Not a view, which would keep the whole tensor.
            local.clone(),
            self._devices,
            [Shard(0)],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )

    def buffer(self, piece: Piece) -> DTensor:
        """Host memory for this rank's rows."""
        return empty(piece.whole, device_mesh=self._host, placements=[Shard(0)])

    @torch.no_grad()
    def take(self, piece: Piece, rows: DTensor, values: Tensor) -> None:
        """Set `values`, which are like the piece, to what the ranks have as rows."""
        whole = DTensor.from_local(
            rows.to_local().to(self._world.device),
            self._devices,
            [Shard(0)],
            run_check=False,
            shape=rows.shape,
            stride=rows.stride(),
        )
        values.copy_(piece.own(whole.full_tensor()))

    @staticmethod
    def total(tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(tensor)
        return tensor
