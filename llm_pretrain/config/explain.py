"""What is said of keys that the schema does not have, and of values that it does not take."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from llm_pretrain.errors import UserError, did_you_mean


def fields_of(cls: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields by name."""
    return typing.get_type_hints(cls)


def dataclasses_in(hint: Any) -> Iterator[Any]:
    """The dataclasses that a value of this type may be."""
    if dataclasses.is_dataclass(hint):
        yield hint
    for part in typing.get_args(hint) if isinstance(hint, types.UnionType) else ():
        yield from dataclasses_in(part)


def check_key(cls: type[Any], key: str) -> None:
    """Raise UserError for a dotted key that `cls` has no field for, naming the nearest one."""
    hint: Any = cls
    parts = key.split(".")
    for i, part in enumerate(parts):
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            continue
        owner = next(dataclasses_in(hint), None)
        names = list(fields_of(owner)) if owner else []
        if part not in names:
            prefix = ".".join(parts[:i])
            full = [f"{prefix}.{name}" if prefix else name for name in names]
            raise UserError(f"{key}: unknown key; {did_you_mean('.'.join(parts[: i + 1]), full)}")
        hint = fields_of(typing.cast(Any, owner))[part]


def explain(cls: type[Any], error: ValidationError) -> Iterator[str]:
    """What is wrong with each value, in a line: its field, the value, and what would be valid."""
    seen = set()
    for item in error.errors():
        # A union adds the branch it tried, such as 'literal[...]', to the path of the field.
        path = [str(p) for p in item["loc"] if "[" not in str(p)]
        name = ".".join(path)
        if name in seen:
            continue
        seen.add(name)
        if item["type"] == "unexpected_keyword_argument":
            try:
                check_key(cls, name)
            except UserError as unknown:
                yield str(unknown)
            continue
        message = item["msg"].removeprefix("Value error, ")
        if "got " not in message:
            message = f"got {item['input']!r}; {message[0].lower()}{message[1:]}"
        if item["type"] == "literal_error":
            options = [
                o.strip("' ") for o in item["ctx"]["expected"].replace(" or ", ",").split(",")
            ]
            message += f"; {did_you_mean(str(item['input']), options)}"
        if item["type"] == "list_type":
            message = f'got {item["input"]!r}; a list has brackets: "{name}=[{item["input"]}]"'
        yield f"{name}: {message}"
