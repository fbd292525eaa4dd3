"""The engine that a config asks for."""

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.base import Engine
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.world import World


def build_engine(config: TrainConfig, world: World, *, fresh: bool = True) -> Engine:
    """Model and optimizer placed on the devices.

    `fresh`: with the model's initial values, which take minutes to draw for a large one; without,
    parameters mean nothing before `Engine.load`. Raises UserError when the engine's package is not
    installed.
    """
    if config.engine.name == "deepspeed":
        # An extra, and slow to import.
        from llm_pretrain.engine.deepspeed import DeepSpeedEngine  # noqa: PLC0415

        return DeepSpeedEngine(config, world, fresh=fresh)
    return FsdpEngine(config, world, fresh=fresh)
