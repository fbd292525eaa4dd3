"""The model as every engine begins with it."""

from typing import cast

import torch

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.fp8 import convert
from llm_pretrain.engine.offload import ActivationOffload
from llm_pretrain.model.loss import chunk_rows, loss_and_gradient
from llm_pretrain.model.transformer import Block, Transformer

_LEAST_CHUNKS = 4
"""Of the chunked loss where it was asked for by name: fewer would save little."""


def blank_model(config: TrainConfig, device: torch.device) -> Transformer:
    """The model on the meta device, where it takes no memory, with the engine's options set.

    `device`: where it will compute.
    """
    with torch.device("meta"):
        model = Transformer(config.model)
    convert(model, config.precision)
    model.head.rows = loss_rows(config)
    model.watched = config.logger.kurtosis
    for block in model.blocks:
        cast(Block, block).recompute = config.engine.recompute
    if config.engine.offload_activations:
        model.around = ActivationOffload(config.model.layers, device)
    if config.engine.compile:
        for block in model.blocks:
            block.compile()
        model.head.gradient = torch.compile(loss_and_gradient)
    return model


def loss_rows(config: TrainConfig) -> int | None:
    """Positions whose logits are made at a time; None: all those of a micro-batch."""
    engine, data = config.engine, config.data
    positions = data.micro_batch * data.sequence_length // engine.context
    rows = chunk_rows(config.model.vocab_size)
    if engine.loss == "chunked":
        return min(rows, -(-positions // _LEAST_CHUNKS))
    few = positions <= rows or engine.tensor > 1
    return None if engine.loss == "plain" or few else rows
