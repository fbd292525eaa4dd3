"""The update rule that a config asks for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llm_pretrain.config.optimizer import OptimizerConfig, RuleName
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.optim.adamw import AdamW, decay_groups, decayed
from llm_pretrain.optim.ademamix import AdEMAMix
from llm_pretrain.optim.base import Groups, Rule, alone
from llm_pretrain.optim.muon import Muon
from llm_pretrain.optim.piece import Total
from llm_pretrain.optim.project import NormalizeAndProject, is_scale, projects
from llm_pretrain.optim.schedule_free import ScheduleFree
from llm_pretrain.optim.schedule_free_plus import ScheduleFreePlus
from llm_pretrain.schedule.schedule import clock_of, schedule_of

Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Lengths:
    """The lengths in an OptimizerConfig, in updates."""

    average_after: int = 0
    anneal: int = 0
    slow_warmup: int = 0
    project: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> "Lengths":
        """Those of a run, from step 0 of its oldest ancestor, also for a rule that began later."""
        clock, optimizer, first = clock_of(config), config.optimizer, schedule_of(config).phases[0]
        after = optimizer.average_after
        warmup = first.length if first.kind == "warmup" else 0
        return cls(
            average_after=warmup if after is None else clock.point(after),
            anneal=clock.point(optimizer.anneal),
            slow_warmup=clock.point(optimizer.slow_warmup),
            project=clock.length(optimizer.project, 0),
        )


def build_rule(
    named: Named,
    config: OptimizerConfig,
    lengths: Lengths,
    *,
    total: Total = alone,
    plain_copies: int = 1,
) -> Rule:
    """The rule of `config` for the parameters `named`, which have their first values.

    Args:
        named: parameters by the model's own names, which decide what is decayed and how each is
            treated.
        config: of the optimizer.
        lengths: its lengths, in updates.
        total: sums over all ranks; as it is for one process.
        plain_copies: ranks that hold the same values of parameters that are no DTensors: see
            `base.copies`.
    """
    pairs = list(named)
    asked = _Asked(pairs, config, lengths, total, plain_copies)
    rule = _BUILDERS[config.name](asked)
    if not lengths.project:
        return rule
    return NormalizeAndProject(
        rule,
        {n: p for n, p in pairs if projects(n, config)},
        [p for n, p in pairs if is_scale(n)],
        every=lengths.project,
        scale_decay=config.scale_decay,
        total=total,
        plain_copies=plain_copies,
    )


@dataclass(frozen=True)
class _Asked:
    """The arguments of `build_rule`."""

    named: list[tuple[str, Tensor]]
    config: OptimizerConfig
    lengths: Lengths
    total: Total
    plain_copies: int

    @property
    def groups(self) -> Groups:
        """What is decayed, and the rest."""
        return decay_groups(self.named, self.config.weight_decay)

    @property
    def adam(self) -> dict[str, Any]:
        """Arguments that all rules but Schedule-Free AdamW share."""
        config = self.config
        betas = (config.beta1, config.beta2)
        return {"lr": config.lr, "betas": betas, "eps": config.eps}


def _adamw(asked: _Asked) -> Rule:
    config = asked.config
    groups = _corrected_groups(asked.named, config) if config.corrected_decay else asked.groups
    return AdamW(groups, peak=config.lr, **asked.adam)


def _schedule_free(asked: _Asked) -> Rule:
    config = asked.config
    return ScheduleFree(
        asked.groups,
        lr=config.lr,
        interpolation=config.interpolation,
        beta2=config.beta2,
        eps=config.eps,
        weight_power=config.weight_power,
    )


def _schedule_free_plus(asked: _Asked) -> Rule:
    config, lengths = asked.config, asked.lengths
    return ScheduleFreePlus(
        asked.groups,
        interpolation=config.interpolation,
        interpolation_end=config.interpolation_end,
        anneal=lengths.anneal,
        weight_power=config.weight_power,
        average_after=lengths.average_after,
        polyak_beta=config.polyak_beta,
        loss_floor=config.loss_floor,
        total=asked.total,
        plain_copies=asked.plain_copies,
        **asked.adam,
    )


def _ademamix(asked: _Asked) -> Rule:
    config = asked.config
    betas = (config.beta1, config.beta2, config.beta3)
    warmup = asked.lengths.slow_warmup
    adam = {**asked.adam, "betas": betas}
    return AdEMAMix(asked.groups, alpha=config.alpha, slow_warmup=warmup, **adam)


def _muon(asked: _Asked) -> Rule:
    config = asked.config
    groups = _muon_groups(asked.named, config)
    return Muon(
        groups,
        momentum=config.momentum,
        ns_steps=config.ns_steps,
        total=asked.total,
        **asked.adam,
    )


_BUILDERS: dict[RuleName, Callable[[_Asked], Rule]] = {
    "adamw": _adamw,
    "schedule_free": _schedule_free,
    "schedule_free_plus": _schedule_free_plus,
    "ademamix": _ademamix,
    "muon": _muon,
}


def _in_block(name: str) -> bool:
    return name.startswith("blocks.")


def _corrected_groups(named: list[tuple[str, Tensor]], config: OptimizerConfig) -> Groups:
    """The blocks' matrices, whose outputs norms see, apart from a head whose they do not."""
    blocks = [p for n, p in named if decayed(n, p) and _in_block(n)]
    rest = [(n, p) for n, p in named if not (decayed(n, p) and _in_block(n))]
    corrected = {"params": blocks, "weight_decay": 0.0, "corrected": config.weight_decay}
    return [g for g in (corrected, *decay_groups(rest, config.weight_decay)) if g["params"]]


def _muon_groups(named: list[tuple[str, Tensor]], config: OptimizerConfig) -> Groups:
    """The blocks' matrices, then AdamW's: an untied head and what is not decayed."""
    matrices = [p for n, p in named if decayed(n, p) and _in_block(n)]
    rest = [(n, p) for n, p in named if not (decayed(n, p) and _in_block(n))]
    mine = {"params": matrices, "weight_decay": config.weight_decay, "muon": True}
    return [g for g in (mine, *decay_groups(rest, config.weight_decay)) if g["params"]]
