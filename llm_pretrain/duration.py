"""Lengths of training with their unit: steps, tokens, or a percentage of a whole."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

Unit = Literal["steps", "tokens", "percent"]

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_PATTERN = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<suffix>[kMBT]?)\s*(?P<unit>steps?|tokens?|%)")
EXAMPLES = '"2000 steps", "10B tokens" or "20%"'


@dataclass(frozen=True)
class Duration:
    """A length in one unit, held exactly: 0.29 of 100 steps is 29 steps, never 28.

    `amount` counts steps or tokens, or percent (20 for "20%").
    """

    amount: Fraction
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read "2000 steps", "200k steps", "10B tokens" or "20%".

        Raises ValueError for anything else: no unit, a negative number, part of a step.
        """
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            # ValueError, not TypeError: pydantic reports only the former as bad input.
            raise ValueError(f"got {text!r}: a length needs its unit, such as {EXAMPLES}")  # noqa: TRY004
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"got {text!r}: not a length; write one like {EXAMPLES}")
        if match["unit"] == "%" and match["suffix"]:
            raise ValueError(f"got {text!r}: a percentage takes no suffix '{match['suffix']}'")
        amount = Fraction(match["number"]) * _SUFFIXES[match["suffix"]]
        if match["unit"] == "%":
            return cls(amount, "percent")
        if amount.denominator != 1:
            raise ValueError(f"got {text!r}: steps and tokens come in whole numbers")
        return cls(amount, "steps" if match["unit"].startswith("step") else "tokens")

    def of(self, whole: int) -> int:
        """The number of steps that a percentage is of `whole` steps, rounded down.

        Rounding down is what the paper's code intends by int(fraction * iterations); here the
        product is exact. Raises ValueError when the unit is not a percentage.
        """
        if self.unit != "percent":
            raise ValueError(f"'{self}' is not a percentage")
        return int(self.amount * whole / 100)

    def __str__(self) -> str:
        if self.unit == "percent":
            return f"{_decimal(self.amount)}%"
        for suffix in ("T", "B", "M") if self.unit == "tokens" else ():
            scaled = self.amount / _SUFFIXES[suffix]
            if scaled >= 1 and (scaled * 1000).denominator == 1:
                return f"{_decimal(scaled)}{suffix} tokens"
        return f"{int(self.amount)} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


def steps(count: int) -> Duration:
    """A length of `count` steps."""
    return Duration(Fraction(count), "steps")


def _decimal(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    text = f"{float(value):.12f}".rstrip("0")
    if Fraction(text) != value:
        raise ValueError(f"{value} has no short decimal form")
    return text
