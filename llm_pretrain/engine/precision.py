"""What `precision` means, for every engine."""

import contextlib
from collections.abc import Iterator

import torch

from llm_pretrain.config.schema import PrecisionConfig
from llm_pretrain.engine.fp8 import scaled


@contextlib.contextmanager
def autocast(precision: PrecisionConfig, device: torch.device) -> Iterator[None]:
    """The context of a forward pass: bf16 does matrix products in bfloat16, the rest in float32.

    fp8 is bf16 but for the matrices that were converted to it. Parameters, the residual stream and
    gradients are float32 in every engine, so that a run means the same under all of them; an engine
    may send parameters rounded to what the products need.
    """
    with contextlib.ExitStack() as stack:
        if precision.low:
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        inner = scaled(precision)
        if inner is not None:
            stack.enter_context(inner())
        yield
