"""Whether a checkpoint is whole, asked by all ranks together: each reads a part of its files."""

from llm_pretrain.checkpoint.store import CheckpointStore, Meta
from llm_pretrain.errors import DamagedCheckpointError, UserError
from llm_pretrain.world import World


def verify(store: CheckpointStore, step: int, world: World) -> Meta:
    """As CheckpointStore.verify; every rank gets the same result or error."""
    error: UserError | None = None
    try:
        store.verify(step, world.rank, world.size)
    except UserError as found:
        error = found
    for found_somewhere in world.gather(error):
        if found_somewhere is not None:
            raise found_somewhere
    return store.meta(step)


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
