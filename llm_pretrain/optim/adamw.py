"""AdamW as the paper uses it: weight decay on matrices only."""

import torch
from torch import nn

from llm_pretrain.config.schema import OptimizerConfig


def decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: matrices of blocks and an untied head, not the embedding."""
    return parameter.ndim >= 2 and not name.startswith("embedding")


def build_adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over the parameters of `model`; its learning rate is set at each step."""
    named = list(model.named_parameters())
    groups = [
        {
            "params": [p for n, p in named if decayed(n, p)],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for n, p in named if not decayed(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def make_state(optimizer: torch.optim.AdamW) -> None:
    """Give every parameter its state, which torch does in the first step only.

    A checkpoint of step 0 and a load need it before.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
