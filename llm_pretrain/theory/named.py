"""Schedules by name and of any length, as they are compared: "wsd-20%", "cosine-10%", "linear"."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_pretrain.config.compose import build
from llm_pretrain.config.schedule import ScheduleConfig, StageConfig
from llm_pretrain.duration import Duration, steps
from llm_pretrain.errors import UserError, did_you_mean
from llm_pretrain.schedule.build import Start, check_schedule, phases_of
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import Schedule
from llm_pretrain.schedule.shapes import FALLS
from llm_pretrain.theory.bound import Array, Terms, last_iterate, moving

_COOLDOWN = {"length": "20%", "shape": "linear"}
PRESETS: dict[str, dict[str, Any]] = {
    "constant": {},
    "wsd": {"cooldown": _COOLDOWN},
    "cosine": {"cooldown": {"length": "rest", "shape": "cosine"}},
    "linear": {"cooldown": {"length": "rest", "shape": "linear"}},
    "inverse-sqrt": {"main": "inverse-sqrt"},
    "two-stage": {"cooldown": _COOLDOWN},
}
"""What each name sets of a ScheduleConfig. Linear cooldowns: those that the theory's numbers are
about. two-stage also drops to `Named.factor` of its rate at `Named.drop`."""
_CLOCK = TokenClock([0], [1])


@dataclass(frozen=True)
class Named:
    """A schedule whose length is still open."""

    name: str
    config: ScheduleConfig
    """Its phases; the total is replaced."""
    drop: Duration
    """two-stage: where the rate drops; a percentage is of the whole run."""
    factor: float
    """two-stage: what of the rate remains then."""

    @classmethod
    def of(
        cls,
        name: str,
        changes: Mapping[str, Any] = {},
        drop: Duration = Duration.parse("40%"),  # noqa: B008  (immutable)
        factor: float = 0.5,
    ) -> "Named":
        """The schedule `name` with fields of a ScheduleConfig replaced: {"warmup": "50 steps"}.

        The defaults of `drop` and `factor` are of a run that was extended to twice its length.
        Raises UserError for an unknown name or field, and for values that do not go together.
        """
        if name not in PRESETS:
            raise UserError(f"schedule: '{name}' is unknown; {did_you_mean(name, PRESETS)}")
        merged = PRESETS[name] | dict(changes)
        merged["cooldown"] = PRESETS[name].get("cooldown", {}) | changes.get("cooldown", {})
        config = build(ScheduleConfig, merged)
        check_schedule(config)
        return cls(name, config, drop, factor)

    @property
    def label(self) -> str:
        """The name in the short notation; `parse` reads it back unless other fields are set."""
        cooldown = self.config.cooldown
        parts = [self.name]
        if cooldown.length == "rest":
            parts += [f"{100 * cooldown.floor:g}%"] if cooldown.floor else []
        elif cooldown.length.amount:
            parts += [str(cooldown.length).replace(" ", "")]
            parts += [cooldown.shape] if cooldown.shape != _COOLDOWN["shape"] else []
        return "-".join(parts)

    def schedule(self, total: int, lr: float = 1.0) -> Schedule:
        """Its phases in a run of `total` updates, at the peak rate `lr`. Raises UserError."""
        config = replace(self.config, total=steps(total), stages=self._stages(total))
        phases = tuple(phases_of(config, lr, _CLOCK, Start()))
        return Schedule(phases, tuple(phase.end for phase in phases))

    def multipliers(self, total: int) -> Array:
        """The multipliers of a run of `total` updates: shape (total,)."""
        return self.schedule(total).rates()

    def terms(self, total: int) -> Terms:
        """The bound of the last iterate after `total` updates, with D = G = 1."""
        return last_iterate(moving(self.multipliers(total)))

    def _stages(self, total: int) -> list[StageConfig]:
        if self.name != "two-stage":
            return []
        at = self.drop.of(total) if self.drop.unit == "percent" else _CLOCK.point(self.drop)
        return [StageConfig(steps(at), self.factor)]


def parse(text: str, changes: Mapping[str, Any] = {}) -> Named:
    """NAME[-PERCENT][-SHAPE]: wsd-20%-1-sqrt, cosine-10%, inverse-sqrt-20%, linear.

    The percentage is the length of the cooldown; of cosine and linear, which have no other, the
    floor. Without one, that of PRESETS. `changes`: as in `Named.of`. Raises UserError.
    """
    name = next((n for n in PRESETS if text == n or text.startswith(f"{n}-")), None)
    if name is None:
        raise UserError(
            f"'{text}': no schedule; write one like wsd-20%, wsd-20%-1-sqrt, cosine, cosine-10%; "
            f"{did_you_mean(text.partition('-')[0], PRESETS)}"
        )
    rest = text[len(name) + 1 :]
    share, percent, shape = rest.partition("%")
    if not percent:
        share, shape = "", rest
    shape = shape.removeprefix("-")
    cooldown: dict[str, Any] = {}
    if share:
        cooldown |= _percentage(text, name, share)
    if shape:
        if name in ("constant", "cosine", "linear") or shape not in FALLS:
            valid = f"write {shape}%" if shape.isdigit() else did_you_mean(shape, FALLS)
            raise UserError(f"'{text}': '{shape}' is no shape of a cooldown of {name}; {valid}")
        cooldown["shape"] = shape
        if name == "inverse-sqrt" and not share:
            cooldown["length"] = _COOLDOWN["length"]
    elif name == "inverse-sqrt":
        cooldown["shape"] = _COOLDOWN["shape"]
    return Named.of(name, {**changes, "cooldown": changes.get("cooldown", {}) | cooldown})


def _percentage(text: str, name: str, share: str) -> dict[str, Any]:
    """What the percentage in the notation sets of a cooldown."""
    try:
        amount = Duration.parse(f"{share}%")
    except ValueError as error:
        raise UserError(f"'{text}': {error}") from error
    if name == "constant" or not 0 <= amount.amount <= 100:
        valid = "use wsd" if name == "constant" else "use 0% to 100%"
        raise UserError(f"'{text}': {share}% is no percentage for {name}; {valid}")
    if name in ("cosine", "linear"):
        return {"floor": float(amount.amount) / 100}
    return {"length": f"{share}%"}
