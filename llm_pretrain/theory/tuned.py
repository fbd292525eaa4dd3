"""The learning rate of a run to come, from that of a run whose rate was tuned."""

from dataclasses import dataclass
from pathlib import Path

from llm_pretrain.config.compose import read
from llm_pretrain.config.diff import differences, trajectory
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.theory.transfer import terms_of, transfer

_OWN = ("optimizer.lr", "run.seed")
"""Fields that may differ: what is transferred, and what is chance."""
_DIGITS = 6


@dataclass(frozen=True)
class Tuned:
    """A rate, and where it is from."""

    run: str
    """Directory of the run whose rate was tuned."""
    lr_there: float
    schedule_there: str
    lr: float

    @property
    def sentence(self) -> str:
        """What a person sees before anything starts."""
        ratio = self.lr / self.lr_there
        return (
            f"optimizer.lr: {self.lr:g} = {ratio:.4g} times the {self.lr_there:g} that was tuned "
            f"in {self.run} ({self.schedule_there}); ratio of the best rates under "
            "the bound of Schaipp et al. 2025 (arXiv 2501.18965)"
        )


def tuned(config: TrainConfig) -> Tuned:
    """The rate for `config` by transfer from `config.tuned_on`, whatever rate it has.

    Raises UserError when that is no run, or one that differs in more than schedule and rate.
    """
    if config.tuned_on is None:
        raise UserError(
            "tuned_on: missing; optimizer.lr=auto needs the directory of a run whose learning rate "
            "was tuned, such as tuned_on=runs/best"
        )
    file = Path(config.tuned_on) / "config.yaml"
    if not file.is_file():
        raise UserError(f"tuned_on: '{config.tuned_on}' is not a run (it has no config.yaml)")
    other = read(file)
    mine, theirs = trajectory(config), trajectory(other)
    changed = differences(theirs | dict.fromkeys(_OWN), mine | dict.fromkeys(_OWN))
    if changed:
        raise UserError(
            f"tuned_on: {config.tuned_on} differs from this run in more than its schedule, for "
            "which no rate can be transferred:\n  " + "\n  ".join(changed)
        )
    there, here = schedule_of(other), schedule_of(config)
    rate = other.optimizer.lr
    found = transfer(rate, terms_of(there, rate), terms_of(here, config.optimizer.lr))
    return Tuned(config.tuned_on, rate, there.describe(), float(f"{found:.{_DIGITS}g}"))


def source(config: TrainConfig) -> str | None:
    """Where the learning rate of a run that is about to be created is from, in a sentence; None for
    one that was given as a number. Raises UserError as `tuned` does."""
    if config.tuned_on is None:
        return None
    found = tuned(config)
    return found.sentence if found.lr == config.optimizer.lr else None
