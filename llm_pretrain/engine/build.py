"""The engine that a config asks for."""

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.base import Engine
from llm_pretrain.engine.choices import settle, settled
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.world import World


def build_engine(
    config: TrainConfig, world: World, *, fresh: bool = True, end_of_text: int | None = None
) -> Engine:
    """Model and optimizer placed on the devices.

    `fresh`: with the model's initial values, which take minutes to draw for a large one; without,
    parameters mean nothing before `Engine.load`. `end_of_text`: the token that ends a document,
    which model.document_mask needs. Raises UserError when a package that was asked for is not
    installed or does not work.
    """
    if not settled(config):
        config = settle(config, world).config
    boundary = end_of_text if config.model.document_mask else None
    if config.engine.name == "deepspeed":
        # An extra, and slow to import.
        from llm_pretrain.engine.deepspeed import DeepSpeedEngine  # noqa: PLC0415

        return DeepSpeedEngine(config, world, fresh=fresh, end_of_text=boundary)
    return FsdpEngine(config, world, fresh=fresh, end_of_text=boundary)
