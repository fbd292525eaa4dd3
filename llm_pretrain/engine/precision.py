"""What `precision` means, for every engine."""

import contextlib
from typing import Any

import torch

from llm_pretrain.config.schema import PrecisionConfig


def autocast(
    precision: PrecisionConfig, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: bf16 does matrix products in bfloat16, the rest in float32.

    Parameters, the residual stream and gradients are float32 in every engine, so that a run means
    the same under all of them; an engine may send parameters rounded to what the products need.
    """
    if precision.name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
