"""The model as every engine begins with it."""

import torch

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.model.transformer import Transformer


def blank_model(config: TrainConfig) -> Transformer:
    """The model on the meta device, where it takes no memory, with the engine's options set."""
    with torch.device("meta"):
        model = Transformer(config.model)
    model.recompute = config.engine.recompute == "block"
    if config.engine.compile:
        for block in model.blocks:
            block.compile()
    return model
