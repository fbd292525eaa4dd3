"""Branches that carry a constant run on to a longer horizon, with what the theory says of each."""

from dataclasses import dataclass, replace

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.config.schema import BranchArgs, BranchSpec
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import clock_of, schedule_of
from llm_pretrain.schedule.shapes import FALLS
from llm_pretrain.theory.extend import Option, Trunk, Tuning, options
from llm_pretrain.theory.transfer import terms_of


@dataclass(frozen=True)
class Proposal:
    """A branch to the new horizon."""

    what: str
    """In words, with the number that the theory filled in."""
    spec: BranchSpec
    bound: float
    """Of the loss, relative to keeping rate and share of the cooldown as they are."""


def propose(parent: Run, asked: BranchArgs) -> list[Proposal]:
    """The two ways of Schaipp et al. 2025 to go on to `asked.extend`: a lower rate, and a longer
    cooldown at the same rate; the one that the bound prefers first.

    The rate is taken to be the best for the run as it was asked for, with `asked.cooldown` at its
    end where it has none. Branches start at checkpoints that are there, where the theory's step is
    not behind the newest. Raises UserError when the run cannot be carried on.
    """
    assert asked.extend is not None
    if asked.at or asked.ends:
        raise UserError("extend: says where branches start and end; leave out at and ends")
    config, saved = parent.config, CheckpointStore(parent.checkpoints).steps()
    schedule, lr, clock = schedule_of(config), config.optimizer.lr, clock_of(config)
    tuning = None
    if schedule.cooldown is None:
        cooldown = asked.cooldown
        if cooldown.shape not in FALLS or not isinstance(cooldown.length, Duration):
            raise UserError(f"cooldown.shape: extend knows {', '.join(FALLS)}")
        length = clock.length(cooldown.length, schedule.total)
        tuning = Tuning(schedule.total, length, cooldown.shape, cooldown.floor)
    whole = Trunk.of(schedule, lr, tuning)
    constant = [step for step in saved if whole.ready <= step <= whole.at]
    trunk = replace(whole, at=constant[-1]) if constant else whole
    total = clock.point(asked.extend)
    found = {option.what: option for option in options(trunk, total, asked="extend")}
    usual = found["as it is"].bound
    lower = found.get("lower rate, matched") or found.get("lower rate, least bound")
    proposals = [_longer(trunk, found["longer cooldown, matched"], constant, asked)]
    if lower is not None:
        proposals.append(_lower(trunk, lower, asked))
    kept = [replace(p, bound=p.bound / usual) for p in proposals]
    return sorted(kept, key=lambda proposal: proposal.bound)


def _lower(trunk: Trunk, option: Option, asked: BranchArgs) -> Proposal:
    level = option.factor * trunk.constant.phases[-1].first
    drop = f"schedule.stages=[{{at: {option.branch} steps, factor: {level:.4g}}}]"
    cooldown = replace(
        asked.cooldown, length=steps(option.cooldown), floor=option.schedule.phases[-1].last
    )
    what = (
        f"lower rate: {option.factor:.4g} of it from step {option.branch:,} on, "
        f"{option.cooldown:,} steps of cooldown"
    )
    spec = _spec(option.branch, option.schedule.total, cooldown, asked, drop)
    return Proposal(what, spec, option.bound)


def _longer(trunk: Trunk, option: Option, saved: list[int], asked: BranchArgs) -> Proposal:
    total = option.schedule.total
    start = option.branch
    if saved and start <= saved[-1]:
        start = min(saved, key=lambda step: abs(step - start))
    length = total - start
    terms = terms_of(trunk.extended(total, length), trunk.lr)
    bound = terms.at(terms_of(trunk.tuned, trunk.lr).optimal_rate)
    what = f"longer cooldown: {length:,} steps of it, from step {start:,} on, at the same rate"
    cooldown = replace(asked.cooldown, length=steps(length))
    return Proposal(what, _spec(start, total, cooldown, asked), bound)


def _spec(
    start: int, total: int, cooldown: CooldownConfig, asked: BranchArgs, *more: str
) -> BranchSpec:
    overrides = [*asked.overrides, f"schedule.total={total} steps", *more]
    return BranchSpec(at=[steps(start)], cooldown=cooldown, overrides=overrides)
