"""Branches that are the mean of a run's checkpoints: which ones, and their config. No training."""

from dataclasses import replace

from llm_pretrain.config.diff import differences, trajectory
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.config.schema import BranchSpec, Segment, TrainConfig
from llm_pretrain.duration import steps
from llm_pretrain.errors import UserError
from llm_pretrain.schedule.schedule import clock_of, schedule_of


def mean_steps(spec: BranchSpec, parent: TrainConfig, end: int) -> list[int]:
    """The steps whose checkpoints are averaged for a branch at step `end`, ascending.

    They follow from the config alone, so that a plan keeps them and asking twice means the same.
    Raises UserError when the spec says nothing of their spacing and the parent saves at no
    interval.
    """
    spacing = _spacing(spec, parent)
    return [end - i * spacing for i in reversed(range(spec.of))]


def mean_name(spec: BranchSpec, parent: TrainConfig) -> str:
    """The part of a branch's name behind its steps: 'mean-5x100'."""
    return f"mean-{spec.of}x{_spacing(spec, parent)}"


def mean_config(
    changed: TrainConfig, past: list[Segment], averaged: list[int], end: int
) -> TrainConfig:
    """The config of the branch, yet without a name. `changed`: the parent's with the overrides."""
    schedule = replace(
        changed.schedule, total=steps(end), cooldown=CooldownConfig(), rewarmup=steps(0)
    )
    return replace(changed, schedule=schedule, past=past, plan=[], mean_of=averaged)


def out_of_reach(parent: TrainConfig, path: object, averaged: list[int]) -> str | None:
    """Why a run cannot have checkpoints at all of these steps, if it cannot."""
    begin = parent.past[-1].until if parent.past else 0
    inside = [step for step in averaged if step > begin]
    if len(inside) == len(averaged):
        return None
    remedy = f"use of={len(inside)} or a smaller spacing" if len(inside) > 1 else "average later"
    return (
        f"a mean of {len(averaged)} checkpoints up to step {averaged[-1]} reaches back to step "
        f"{averaged[0]}, but {path} begins at step {begin}; {remedy}"
    )


def refuse_training(parent: TrainConfig, changed: TrainConfig) -> None:
    """Raise UserError when overrides ask a mean to be trained in another way."""
    other = differences(trajectory(parent), trajectory(changed))
    if changed.schedule != parent.schedule:
        other.append("schedule")
    if other:
        raise UserError(
            f"{other[0].partition(':')[0]}: a branch with kind=average trains nothing; leave it "
            "out, or branch from the average to train on"
        )


def _spacing(spec: BranchSpec, parent: TrainConfig) -> int:
    clock, total = clock_of(parent), schedule_of(parent).total
    spacing = clock.length(spec.spacing, total) or clock.length(parent.checkpoint.every, total)
    if not spacing:
        raise UserError(
            'spacing: missing; the run has no checkpoint.every to go by: write spacing="100 steps"'
        )
    return spacing
