"""Averages of a run: made as its config says, and evaluated beside its parameters."""

from collections.abc import Callable

from llm_pretrain.config.average import BEST, in_steps
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.optim.averaging import Averages, Parts
from llm_pretrain.schedule.schedule import clock_of


def averages_of(config: TrainConfig, parts: Parts) -> Averages:
    """The averages that `config` asks for; none take no memory and no time."""
    return Averages(parts, in_steps(config.average, clock_of(config)))


def evaluate_averages(
    averages: Averages, measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Losses of the averages that are complete: 'val_loss_window_500' and so on, and the best of
    them.

    `measure` evaluates what the parameters hold. All ranks call together.
    """
    losses = {}
    for name in averages.complete():
        with averages.applied(name):
            losses[f"val_loss_{name}"] = measure()["val_loss"]
    return {**losses, BEST: min(losses.values())} if losses else {}
