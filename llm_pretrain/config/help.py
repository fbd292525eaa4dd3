"""The text of `--help`, made from the schema: every field with its default and docstring."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from llm_pretrain.config import schema
from llm_pretrain.config.compose import compose
from llm_pretrain.config.groups import groups

_TRAIN = """usage: llm-pretrain train [KEY=VALUE ...] [--config-dir DIR] [Hydra flags]

Trains the run that conf/train.yaml describes with your overrides, in ${run.root}/${run.name}.
The same command again continues it, or does nothing when it is finished.
resume=DIR continues the run in DIR from its own config.

With a cluster whose launcher is slurm, a job is submitted and the command returns with its number;
a multirun makes an array of jobs. --wait waits for their end; --dry-run only prints the script.

Hydra's flags work: --cfg job shows the composed config, --multirun runs every combination of
comma-separated values, --info explains the composition, --hydra-help lists the rest.
--config-dir DIR adds a folder of your own groups and experiments.
"""
_UNREAD = (
    "data.cache",
    "data.workers",
    "data.validation_fraction",
    "data.tokenizer",
    "data.sources",
    "cluster.launcher",
    "cluster.jobs",
    "cluster.slurm",
)
"""What a command that trains nothing depends on least of all."""


def train_help() -> str:
    """Help of `llm-pretrain train`."""
    lines = [_TRAIN, "Groups (choose with GROUP=OPTION):"]
    for group, options in groups().items():
        if group != "study":
            lines += wrap(f"{group}: {', '.join(options)}", "  ")
    lines.append("\nFields (KEY=VALUE):")
    lines += describe(schema.TrainConfig, "", skip=("past", "mean_of"))
    return "\n".join(lines)


def describe_read(read: Sequence[str], values: str, name: str) -> list[str]:
    """Lines about the groups `read`, which a command depends on, and their fields.

    The defaults are those of conf/`name`.yaml, about which `values` may say something.
    """
    lines = ["Groups (choose with GROUP=OPTION):"]
    for group, options in groups().items():
        if group in (*read, "experiment"):
            lines += wrap(f"{group}: {', '.join(options)}", "  ")
    lines.append(f"\nFields (KEY=VALUE){values}:")
    others = [f.name for f in dataclasses.fields(schema.TrainConfig) if f.name not in read]
    lines += describe(schema.TrainConfig, "", (*others, *_UNREAD), compose([], name=name))
    return lines


def describe(
    cls: Any, prefix: str, skip: tuple[str, ...] = (), values: Any = None
) -> Iterator[str]:
    """Lines about each field of a dataclass. `values`: an instance to show instead of defaults."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if name in skip:
            continue
        text = docstring(cls, field.name)
        if hasattr(hint, "__pydantic_fields__"):
            yield from wrap(f"{name}: {(hint.__doc__ or '').strip()}", "  ")
            yield from describe(hint, f"{name}.", skip, getattr(values, field.name, None))
        elif (inner := _inner(hint)) is not None:
            yield from wrap(f"{name}: {text}", "  ")
            yield from describe(inner, f"{name}.NAME.")
        else:
            value = _default(field) if values is None else _shown(getattr(values, field.name))
            yield from wrap(f"{name}={value}  {text}", "  ")


def _inner(hint: Any) -> Any:
    """The dataclass that a dict's values are of, if they are."""
    values = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
    return values if hasattr(values, "__pydantic_fields__") else None


def docstring(cls: Any, name: str) -> str:
    """The text under a field where it is defined, which may be a base class."""
    owners = [c for c in cls.__mro__ if name in getattr(c, "__pydantic_fields__", {})]
    texts = (owner.__pydantic_fields__[name].description for owner in owners)
    return next((text for text in texts if text), "")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return _shown(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    return "(required)"


def _shown(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[...]"
    return "null" if value is None else str(value)


def wrap(text: str, indent: str) -> list[str]:
    """Lines of a paragraph, the first behind `indent`, the others further in."""
    flat = " ".join(text.split())
    return textwrap.wrap(flat, 98, initial_indent=indent, subsequent_indent=indent + "      ")
