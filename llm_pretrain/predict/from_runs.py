"""The observations that run directories hold."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from llm_pretrain.config.schema import TrainConfig, to_dict
from llm_pretrain.errors import UserError
from llm_pretrain.predict.history import History
from llm_pretrain.predict.observe import Observation, curve_of, final, repeatability
from llm_pretrain.predict.predictor import Predictor, lacking
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of

_INDIFFERENT = ("micro_batch", "cache", "workers")
"""Fields of the data that no loss depends on."""


@dataclass(frozen=True)
class Measured:
    """What can be learned from a trunk and other runs."""

    observations: tuple[Observation, ...]
    """The trunk's curve, and the final losses of the runs that ended."""
    weight_decay: float
    noise: float
    """Standard deviation to expect between repeated runs, nats."""
    reason: str | None
    """Why no prediction is possible yet, or None."""

    def predictor(self) -> Predictor:
        """Fit a predictor. Raises UserError where there is a reason against it."""
        if self.reason is not None:
            raise UserError(f"no prediction: {self.reason}")
        decay, noise = self.weight_decay, self.noise
        return Predictor.fit(self.observations, weight_decay=decay, noise=noise)


def measured(trunk: Run, others: Iterable[Run] = ()) -> Measured:
    """What `trunk` and those of `others` that are comparable have measured so far.

    Comparable are finished runs of the same model, data, batch and optimizer, whatever their
    learning rates: branches of the trunk and of other trunks, and runs from scratch. Raises
    UserError for a run that cannot be read.
    """
    config = trunk.config
    history = History(schedule_of(config).rates())
    rows = sorted(_losses(trunk))
    steps, losses = [step for step, _ in rows], [loss for _, loss in rows]
    found = list(curve_of(history, steps, losses))
    noise, mine = repeatability(history, steps, losses), identity(config)
    reason = lacking(found)
    if mixed(config):
        reason = "the batch or the data changed along the trunk; the law is for one of each"
    # Others are looked for only where they could teach something.
    for run in others if reason is None else ():
        # The trunk's own end is in its curve already.
        if run.path != trunk.path and run.status == "finished" and identity(run.config) == mine:
            found += _final(run, noise)
    return Measured(tuple(found), config.optimizer.weight_decay, noise, reason)


def mixed(config: TrainConfig) -> bool:
    """Whether an ancestor was trained on other data or with another batch."""
    return any(_data(segment.data) != _data(config.data) for segment in config.past)


def _final(run: Run, noise: float) -> list[Observation]:
    """The loss at the end of a run, where it was measured."""
    history = History(schedule_of(run.config).rates())
    ends = [loss for step, loss in _own_losses(run) if step == history.total]
    return [final(history, history.total, loss, noise) for loss in ends[-1:]]


def _losses(run: Run) -> Iterator[tuple[int, float]]:
    """Validation losses of a run and, before its first step, of its ancestors."""
    yield from _own_losses(run)
    begin, parent = run.begin, run.parent_run()
    while parent is not None:
        yield from ((step, loss) for step, loss in _own_losses(parent) if step <= begin)
        begin, parent = parent.begin, parent.parent_run()


def _own_losses(run: Run) -> Iterator[tuple[int, float]]:
    for row in run.metrics():
        if "val_loss" in row and row["step"] > run.begin:
            yield row["step"], row["val_loss"]


def identity(config: TrainConfig) -> Any:
    """Equal for runs whose losses one law describes."""
    plain = to_dict(replace(config, past=[]))
    optimizer = {name: value for name, value in plain["optimizer"].items() if name != "lr"}
    return plain["model"], optimizer, _data(config.data), mixed(config), plain["eval"]["sequences"]


def _data(data: Any) -> Any:
    plain = to_dict(TrainConfig(data=data))["data"]
    return {name: value for name, value in plain.items() if name not in _INDIFFERENT}
