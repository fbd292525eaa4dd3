"""Whether a checkpoint is whole, asked by all ranks together: each reads a part of its files."""

from llm_pretrain.checkpoint.store import CheckpointStore, Meta
from llm_pretrain.errors import DamagedCheckpointError, UserError
from llm_pretrain.world import World


def verify(store: CheckpointStore, step: int, world: World) -> Meta:
    """As CheckpointStore.verify; every rank gets the same result or error."""
    result: Meta | UserError
    try:
        result = store.verify(step, world.rank, world.size)
    except UserError as damage:
        result = damage
    for error in world.gather(result if isinstance(result, UserError) else None):
        if error is not None:
            raise error
    assert isinstance(result, Meta)
    return result


def latest(
    store: CheckpointStore, world: World
) -> tuple[Meta | None, list[DamagedCheckpointError]]:
    """The newest checkpoint that verifies, and the damaged ones that are newer."""
    damaged: list[DamagedCheckpointError] = []
    # One rank looks, since on a shared file system others may see an older listing.
    for step in reversed(world.on_main(store.steps)):
        try:
            return verify(store, step, world), damaged
        except DamagedCheckpointError as error:
            damaged.append(error)
    return None, damaged
