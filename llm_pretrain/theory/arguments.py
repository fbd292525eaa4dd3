"""KEY=VALUE arguments of `llm-pretrain theory`, refused with what would be valid."""

from collections.abc import Sequence
from typing import Any

from llm_pretrain.duration import Duration
from llm_pretrain.errors import UserError, did_you_mean
from llm_pretrain.schedule.clock import TokenClock

SCHEDULE_KEYS = (
    *("warmup", "warmup_from", "warmup_shape", "timescale", "inclusive"),
    *(f"cooldown.{name}" for name in ("length", "shape", "floor", "exponent", "half_life", "hold")),
)
"""Fields of a ScheduleConfig that may be given."""
_LARGEST = 10**8
"""Updates; an array of them is what a laptop still holds."""


class Arguments:
    """What one command was given."""

    def __init__(self, command: str, arguments: Sequence[str], keys: Sequence[str]) -> None:
        """Raises UserError for a key that is not in `keys`, or given twice."""
        self.command = command
        self.json = False
        self._given: dict[str, str] = {}
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if argument == "--json":
                self.json = True
            elif argument.startswith("-"):
                raise UserError(f"{argument}: theory {command} knows --json only")
            elif not equals:
                raise UserError(f"{argument}: write arguments as key=value, such as {keys[0]}=...")
            elif key not in keys:
                raise UserError(f"{key}: unknown key; {did_you_mean(key, keys)}")
            elif key in self._given:
                raise UserError(f"{key}: given twice, as {self._given[key]} and {value}")
            else:
                self._given[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def text(self, key: str, example: str) -> str:
        """A value that must be there."""
        if not self._given.get(key):
            raise UserError(f"{key}: missing; theory {self.command} needs it: {key}={example}")
        return self._given[key]

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0; it must be there unless it has a default."""
        if key not in self._given and default is not None:
            return default
        given = self.text(key, "1e-3")
        value = _number(given)
        if not isinstance(value, str) and 0 < value < float("inf"):
            return float(value)
        raise UserError(f"{key}: got {given!r}; use a positive number, such as 1e-3")

    def steps(self, key: str, default: int | None = None) -> int:
        """A number of updates: 4000, "4000 steps" or "4k steps"."""
        if key not in self._given and default is not None:
            return default
        given = self.text(key, "50000")
        try:
            return _steps(key, f"{given} steps" if given.isdigit() else given, None)
        except ValueError:
            raise UserError(
                f"{key}: got {given!r}; use a number of updates, such as 50000"
            ) from None

    def position(self, key: str, clock: TokenClock | None, default: int | None = None) -> int:
        """A step from 0 on, in steps, or in tokens where a run's `clock` is known."""
        if key not in self._given and default is not None:
            return default
        given = self.text(key, '"200k steps"')
        try:
            return _steps(key, given, clock)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error

    def share(self, key: str, default: str) -> Duration:
        """A length, which may be a percentage."""
        try:
            return Duration.parse(self._given.get(key, default))
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error

    def schedule(self) -> dict[str, Any]:
        """The given fields of a ScheduleConfig, as nested values that its schema checks."""
        found: dict[str, Any] = {}
        for key in SCHEDULE_KEYS:
            if key in self._given:
                group, _, name = key.rpartition(".")
                place = found.setdefault(group, {}) if group else found
                place[name] = _number(self._given[key])
        return found


def _number(text: str) -> float | int | bool | str:
    """The value that a text means, itself when it is neither a number nor true or false."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _steps(key: str, text: str, clock: TokenClock | None) -> int:
    length = Duration.parse(text)
    if length.unit == "percent" or (length.unit == "tokens" and clock is None):
        raise UserError(f"{key}: '{length}'; use a number of steps, such as 50000")
    count = clock.point(length) if clock else int(length.amount)
    if not 1 <= count <= _LARGEST:
        raise UserError(f"{key}: {count} steps; use 1 to {_LARGEST:,}")
    return count
