"""From the best learning rate of one schedule to that of another (Schaipp et al. 2025)."""

from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import Schedule
from llm_pretrain.theory.bound import Terms, last_iterate, moving


def transfer(lr: float, old: Terms, new: Terms) -> float:
    """The peak learning rate for the schedule `new`, where `lr` was tuned for the schedule `old`.

    gamma_new = gamma_tuned gamma*(new) / gamma*(old) (arXiv 2501.18965, transfer across schedules
    and horizons): D and G are those of the problem and cancel, so both terms are taken with
    D = G = 1. Raises UserError unless `lr` is positive.
    """
    if not 0 < lr < float("inf"):
        raise UserError(f"lr: {lr:g}; needs the learning rate that was tuned, such as 1e-3")
    return lr * new.optimal_rate / old.optimal_rate


def terms_of(schedule: Schedule, lr: float) -> Terms:
    """The bound, with D = G = 1, of a run's real rates relative to `lr`, its peak learning rate.

    Raises UserError when every update is at rate 0.
    """
    return last_iterate(moving(schedule.rates()) / lr)
