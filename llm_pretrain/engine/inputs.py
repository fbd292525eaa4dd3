"""From a micro-batch in host memory to what the model is called with, on the device."""

from typing import NamedTuple

from torch import Tensor

from llm_pretrain.model.attention import Documents, documents_of
from llm_pretrain.world import World


class Inputs(NamedTuple):
    """The first arguments of `Transformer.forward`."""

    tokens: Tensor
    """int64 (B, T / context): this rank's part of each sequence."""
    targets: Tensor
    first: int
    documents: Documents | None
    """Of the whole sequences."""

    @classmethod
    def of(cls, tokens: Tensor, end_of_text: int | None, world: World) -> "Inputs":
        """Send (B, T + 1) to the device; from pinned memory without waiting for it.

        `end_of_text`: the token after which attention begins anew, None where it does not. Where
        documents begin is found on the host, which has time, so that no device is waited for.
        """
        layout, device = world.layout, world.device
        documents = None
        if end_of_text is not None:
            documents = documents_of(tokens[:, :-1], end_of_text).to(device)
        length = (tokens.shape[1] - 1) // layout.context
        first = layout.context_rank(world.rank) * length
        part = tokens[:, first : first + length + 1].to(device, non_blocking=True)
        return cls(part[:, :-1], part[:, 1:], first, documents)
