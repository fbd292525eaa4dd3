"""What makes two configs different runs, and how to tell a person."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from llm_pretrain.config.schema import TrainConfig, to_dict

_OPERATIONAL = (
    *("run.name", "run.root", "run.dir", "engine", "cluster", "logger", "eval", "checkpoint"),
    *("average", "plan", "resume", "tuned_on", "data.cache", "data.workers", "data.micro_batch"),
    *("model.attention", "precision.library"),
)
_HELD_OUT = (
    *("data.sequence_length.", "data.validation_fraction.", "data.tokenizer.", "data.sources."),
    "eval.sequences.",
)
_OPERATIONAL_PREFIXES = tuple(f"{group}." for group in _OPERATIONAL)


def operational(name: str) -> bool:
    """Whether a field leaves every update as it is: where and how the run is executed."""
    return f"{name}.".startswith(_OPERATIONAL_PREFIXES)


def trajectory(config: TrainConfig) -> dict[str, Any]:
    """The fields that decide the parameters after each update, flat: 'optimizer.lr' -> 0.001.

    Without the schedule, which is compared by what it does.
    """
    flat = all_fields(config)
    return {
        n: v for n, v in flat.items() if not operational(n) and not f"{n}.".startswith("schedule.")
    }


def own_trajectory(config: TrainConfig) -> dict[str, Any]:
    """The same without the ancestors, whose configs may change in ways that leave their past."""
    return {name: value for name, value in trajectory(config).items() if name != "past"}


def held_out(config: TrainConfig) -> dict[str, Any]:
    """The fields that decide the held-out sequences, flat: equal values, comparable losses."""
    flat = all_fields(config)
    return {n: v for n, v in flat.items() if f"{n}.".startswith(_HELD_OUT) and not _drawn(n)}


def _drawn(name: str) -> bool:
    """Whether a field of a source only decides what is drawn from it, or how it is read."""
    return name.startswith("data.sources.") and name.endswith((".weight", ".format"))


def completed(old: dict[str, Any]) -> dict[str, Any]:
    """A trajectory that an earlier version wrote, with the defaults of fields that came later."""
    later = {n: v for n, v in trajectory(TrainConfig()).items() if not n.startswith("data.")}
    return {**later, **old}


def fingerprint(trajectory: dict[str, Any]) -> str:
    """A hash that two trajectories share exactly when they are the same."""
    return hashlib.sha256(json.dumps(trajectory, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line a field that differs: 'optimizer.lr: 0.001 -> 0.002'."""
    missing = "(absent)"
    return [
        f"{name}: {old.get(name, missing)} -> {new.get(name, missing)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]


def all_fields(config: TrainConfig) -> dict[str, Any]:
    """Every field of a config, flat."""
    return dict(_flatten(to_dict(config)))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
