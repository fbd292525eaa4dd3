"""ZeRO's flat partitions as the parts that averages are made of, and as named rows to save them."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from llm_pretrain.engine.base import State
from llm_pretrain.engine.zero_state import ZeroState

_NAME = "average"


class ZeroParts:
    """See optim.averaging.Parts. The names are numbers of partitions, which only this run knows;
    a checkpoint has the model's names, and rows that every engine reads."""

    def __init__(self, state: ZeroState) -> None:
        self._state = state

    def tensors(self) -> Mapping[str, Tensor]:
        """See Parts."""
        return {str(i): flat for i, flat in enumerate(self._state.flat)}

    def written(self) -> None:
        """See Parts."""
        self._state.spread()

    def saved(self, values: Mapping[str, Tensor]) -> State:
        """See Parts."""
        named = self._state.parameters.items()
        return {name: partial(self._rows, values, parameter) for name, parameter in named}

    def loaded(self, values: Mapping[str, Tensor], read: Callable[[State], None]) -> None:
        """See Parts."""
        state = self._state
        buffers = {name: state.buffer(p) for name, p in state.parameters.items()}
        read(dict(buffers))
        with state.as_moment(_NAME, list(values.values())):
            for name, parameter in state.parameters.items():
                state.set(parameter, _NAME, state.whole(buffers.pop(name)))

    def _rows(self, values: Mapping[str, Tensor], parameter: nn.Parameter) -> Tensor:
        with self._state.as_moment(_NAME, list(values.values())):
            return self._state.part(parameter, _NAME)
