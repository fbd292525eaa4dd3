"""Loss on held-out text, over all ranks."""

import math

import numpy as np
import torch

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.engine.base import Engine
from llm_pretrain.world import World


def evaluate(engine: Engine, loader: Loader, config: TrainConfig, world: World) -> dict[str, float]:
    """Mean loss in nats per token and its standard error over sequences.

    The sequences are the same at every evaluation and for every world size.
    """
    count = loader.validation_sequences(config.eval.sequences)
    micro = config.data.micro_batch
    share = -(-count // world.data_size)
    begin = min(world.data_rank * share, count)
    end = min(begin + share, count)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    # Every rank runs the same number of forward passes of the same shape: FSDP gathers in each.
    for first in range(begin, begin + share, micro):
        own = max(0, min(micro, end - first))
        rows = loader.validation_batch(first, own) if own else loader.validation_batch(0, 1)
        padded = np.resize(rows, (micro, rows.shape[1]))
        losses = engine.evaluate(torch.from_numpy(padded))[:own].double()
        sums += torch.stack([losses.sum(), (losses * losses).sum()])
    total, squares = world.sum(sums).tolist()
    mean = total / count
    variance = max(0.0, squares / count - mean * mean) * count / max(1, count - 1)
    return {"val_loss": mean, "val_stderr": math.sqrt(variance / count)}
