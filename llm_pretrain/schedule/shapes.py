"""How a multiplier falls, by formulas with a name and by functions of the user's."""

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

from llm_pretrain.errors import UserError

FALLS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda p, m: 1 - p,
    "1-sqrt": lambda p, m: 1 - m.sqrt(p),
    "cosine": lambda p, m: (1 + m.cos(m.pi * p)) / 2,
    "mirror-cosine": lambda p, m: 2 * (1 - p) - (1 + m.cos(m.pi * p)) / 2,
    "square": lambda p, m: 1 - p * p,
}
"""By progress p, each from 1 at p = 0 to 0 at p = 1 (Hägele et al. 2024). m: math or numpy."""


@cache
def function(name: str) -> Callable[[int], float]:
    """The user's own multiplier, "module:name". Raises UserError."""
    place, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(place), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"schedule.function: '{name}' cannot be imported ({error}); write module:name, and see "
            "that PYTHONPATH has the folder of the module"
        ) from error

    def checked(step: int) -> float:
        result = float(found(step))
        if not (math.isfinite(result) and result >= 0):
            raise UserError(f"schedule.function: '{name}' gives {result} for step {step}")
        return result

    return checked
