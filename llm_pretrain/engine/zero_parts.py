"""ZeRO's pieces as the parts that averages are made of, and as named rows to save them."""

from collections.abc import Callable, Mapping

from torch import Tensor

from llm_pretrain.engine.base import State
from llm_pretrain.engine.zero_state import ZeroState


class ZeroParts:
    """See optim.averaging.Parts."""

    def __init__(self, state: ZeroState) -> None:
        self._state = state

    def tensors(self) -> Mapping[str, Tensor]:
        """See Parts."""
        return self._state.pieces

    def written(self) -> None:
        """See Parts."""
        self._state.written()

    def saved(self, values: Mapping[str, Tensor]) -> State:
        """See Parts."""
        pieces = self._state.pieces
        return {name: self._state.rows(pieces[name], value) for name, value in values.items()}

    def loaded(self, values: Mapping[str, Tensor], read: Callable[[State], None]) -> None:
        """See Parts."""
        pieces = self._state.pieces
        buffers = {name: self._state.buffer(pieces[name]) for name in values}
        read(dict(buffers))
        for name, value in values.items():
            self._state.take(pieces[name], buffers.pop(name), value)
