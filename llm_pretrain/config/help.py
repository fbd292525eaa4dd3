"""The text of `--help`, made from the schema: every field with its default and docstring."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from llm_pretrain.config import schema
from llm_pretrain.config.compose import groups

_TRAIN = """usage: llm-pretrain train [KEY=VALUE ...] [--config-dir DIR] [Hydra flags]

Trains the run that conf/train.yaml describes with your overrides, in ${run.root}/${run.name}.
The same command again continues it, or does nothing when it is finished.
resume=DIR continues the run in DIR from its own config.

Hydra's flags work: --cfg job shows the composed config, --multirun runs every combination of
comma-separated values, --info explains the composition, --hydra-help lists the rest.
--config-dir DIR adds a folder of your own groups and experiments.
"""

_BRANCH = """usage: llm-pretrain branch plan|apply parent=RUN [KEY=VALUE ...]

plan shows which branches exist, which would start and which cannot; apply starts what is missing.
Without at= or ends=, the plan in the run's own config is used. Any field of a run that may differ
from its parent can be overridden beside these (see llm-pretrain train --help).
"""


def train_help() -> str:
    """Help of `llm-pretrain train`."""
    lines = [_TRAIN, "Groups (choose with GROUP=OPTION):"]
    for group, options in groups().items():
        lines += _wrap(f"{group}: {', '.join(options)}", "  ")
    lines.append("\nFields (KEY=VALUE):")
    lines += _describe(schema.TrainConfig, "", skip=("past",))
    return "\n".join(lines)


def branch_help() -> str:
    """Help of `llm-pretrain branch`."""
    return "\n".join([_BRANCH, *_describe(schema.BranchArgs, "", skip=("overrides",))])


def _describe(cls: Any, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        name, hint = prefix + field.name, hints[field.name]
        text = _docstring(cls, field.name)
        if hasattr(hint, "__pydantic_fields__"):
            yield from _wrap(f"{name}: {(hint.__doc__ or '').strip()}", "  ")
            yield from _describe(hint, f"{name}.")
        elif typing.get_origin(hint) is dict:
            yield from _wrap(f"{name}: {text}", "  ")
            yield from _describe(typing.get_args(hint)[1], f"{name}.NAME.")
        else:
            yield from _wrap(f"{name}={_default(field)}  {text}", "  ")


def _docstring(cls: Any, name: str) -> str:
    """The text under a field where it is defined, which may be a base class."""
    owners = [c for c in cls.__mro__ if name in getattr(c, "__pydantic_fields__", {})]
    texts = (owner.__pydantic_fields__[name].description for owner in owners)
    return next((text for text in texts if text), "")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return "null" if field.default is None else str(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    return "(required)"


def _wrap(text: str, indent: str) -> list[str]:
    flat = " ".join(text.split())
    return textwrap.wrap(flat, 98, initial_indent=indent, subsequent_indent=indent + "      ")
