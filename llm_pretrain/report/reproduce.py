"""The commands and versions that make a run again."""

import shlex

from llm_pretrain.report.data import RunData
from llm_pretrain.schedule.build import cooldown_length

_OF_THE_SHAPE = ("floor", "exponent", "half_life")


def command(run: RunData) -> str:
    """The shell command that starts this run, from its record and its config.

    A run that was prolonged by a resume shows how it was first started; its config.yaml says what
    it became.
    """
    return shlex.join(["llm-pretrain", *arguments(run)])


def arguments(run: RunData) -> list[str]:
    """The arguments of `llm-pretrain` for that command."""
    if run.record.parent is None:
        return ["train", *run.record.overrides]
    asked = _average(run) if run.kind == "average" else _trained(run)
    place = run.parent.path if run.parent else run.path.with_name("PARENT")
    return ["branch", "apply", f"parent={place}", *asked, *run.record.overrides]


def _average(run: RunData) -> list[str]:
    """What makes the average of a parent's checkpoints again."""
    before, last = run.config.mean_of[-2:]
    of, spacing = len(run.config.mean_of), last - before
    return ["kind=average", f"at=[{last} steps]", f"of={of}", f"spacing={spacing} steps"]


def _trained(run: RunData) -> list[str]:
    """What makes a branch that trains again."""
    cooldown = run.config.schedule.cooldown
    length = cooldown_length(cooldown, run.clock, run.total, run.begin)
    asked = [f"at=[{run.begin} steps]", f"cooldown.length={length} steps"]
    if length:
        asked.append(f"cooldown.shape={cooldown.shape}")
        values = ((name, getattr(cooldown, name)) for name in _OF_THE_SHAPE)
        asked += [f"cooldown.{name}={value}" for name, value in values if value]
        if hold := run.clock.length(cooldown.hold, run.total):
            asked.append(f"cooldown.hold={hold} steps")
    rewarmup = run.config.schedule.rewarmup
    if rewarmup.amount:
        asked.append(f"rewarmup={rewarmup}")
    return asked


def versions(run: RunData) -> str:
    """The versions that the run recorded."""
    return ", ".join(f"{name} {value}" for name, value in run.record.versions.items())
