"""What the groups of the schema share: how strict they are, and kinds of numbers."""

from typing import Annotated

from pydantic import ConfigDict, Field

RULES = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
