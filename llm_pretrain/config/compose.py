"""From command-line overrides and conf/ to validated dataclasses; the only user of Hydra's API."""

import copy
import itertools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from llm_pretrain.config import schema
from llm_pretrain.config.arguments import key_of
from llm_pretrain.config.explain import check_key, dataclasses_in, explain, fields_of
from llm_pretrain.config.groups import conf_dir, groups, option
from llm_pretrain.config.optimizer_rules import check_rate_of_experiment
from llm_pretrain.config.rules import check
from llm_pretrain.errors import UserError, did_you_mean

T = TypeVar("T")
AUTO = "auto"
"""The learning rate that `tuned_on` decides."""

# libyaml where PyYAML was built with it: the same result, ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def compose(
    overrides: Sequence[str], config_dir: Path | None = None, *, name: str = "train"
) -> schema.TrainConfig:
    """Compose conf/NAME.yaml with `overrides`. Raises UserError for anything wrong in them."""
    config = build_train(_compose(name, overrides, schema.TrainConfig, config_dir))
    if {"optimizer", "experiment"} <= (given := {key_of(text) for text in overrides}):
        check_rate_of_experiment(config.optimizer, "optimizer.lr" in given)
    return config


def compose_branch(overrides: Sequence[str], config_dir: Path | None = None) -> schema.BranchArgs:
    """Compose conf/branch.yaml with `overrides`. Raises UserError for anything wrong in them."""
    return compose_command("branch", overrides, schema.BranchArgs, config_dir)


def compose_command(
    name: str,
    overrides: Sequence[str],
    cls: type[T],
    config_dir: Path | None = None,
    *,
    described: dict[str, Any] | None = None,
) -> T:
    """Compose conf/NAME.yaml into `cls`; overrides of a run's fields become its `overrides`.

    `described`: the plain values of a `cls` to begin with instead.
    """
    own: list[str] = []
    rest: list[str] = []
    for text, override in zip(overrides, _parse(overrides), strict=True):
        head = override.key_or_group.split(".")[0]
        (own if head in fields_of(cls) and head != "overrides" else rest).append(text)
    check_overrides(rest, schema.TrainConfig, config_dir)
    if described is None:
        data = _compose(name, own, cls, config_dir)
    else:
        data = copy.deepcopy(described)
        for change in check_overrides(own, cls, config_dir):
            _set(data, change)
    return build(cls, {**data, "overrides": [*data.get("overrides", []), *rest]})


def override(
    config: schema.TrainConfig, overrides: Sequence[str], config_dir: Path | None = None
) -> schema.TrainConfig:
    """A resolved config with some values replaced, as a resume or a branch asks for.

    `config_dir`: the user's own groups. Raises UserError for anything wrong in `overrides`.
    """
    data = schema.to_dict(config)
    known = groups(config_dir)
    for change in _checked(overrides, schema.TrainConfig, known):
        if change.is_sweep_override():
            raise UserError(f"{change.input_line}: several values need --multirun")
        if change.key_or_group in known and change.key_or_group in data:
            group = change.key_or_group
            values = option(group, change.get_value_element_as_str(), config_dir)
            _merge(data[group], values, fields_of(schema.TrainConfig)[group])
        elif change.key_or_group == "experiment":
            raise UserError("experiment: composes a new run; it cannot be applied to this one")
        else:
            _set(data, change)
    return build_train(data)


def build_train(data: dict[str, Any]) -> schema.TrainConfig:
    """Plain values to a checked TrainConfig, the rate "auto" to a number. Raises UserError."""
    if data.get("optimizer", {}).get("lr") == AUTO:
        data = {**data, "optimizer": {**data["optimizer"], "lr": _tuned_rate(data)}}
    config = build(schema.TrainConfig, data)
    check(config)
    return config


def _tuned_rate(data: dict[str, Any]) -> float:
    # Late, since it reads configs itself.
    from llm_pretrain.theory.tuned import tuned  # noqa: PLC0415

    any_rate = {**data["optimizer"], "lr": 1.0}
    return tuned(build(schema.TrainConfig, {**data, "optimizer": any_rate})).lr


def build(cls: type[T], data: dict[str, Any]) -> T:
    """Plain values to a dataclass of the schema. Raises UserError naming field and value."""
    try:
        return TypeAdapter(cls).validate_json(schema.dumps(data))
    except ValidationError as error:
        raise UserError("\n".join(explain(cls, error))) from None


def read(path: Path) -> schema.TrainConfig:
    """A run's config.yaml. Raises UserError when it is unreadable."""
    try:
        data = yaml.load(path.read_text(), _Loader)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a run's config ({error})") from error
    return build_train(data)


def dump(config: schema.TrainConfig) -> str:
    """The text of config.yaml; `read` gives the same config back."""
    text: str = yaml.dump(schema.to_dict(config), Dumper=_Dumper, sort_keys=False, width=100)
    return text


def check_overrides(
    overrides: Sequence[str], cls: type[Any], config_dir: Path | None = None
) -> list[Override]:
    """Parse overrides and refuse unknown keys and group options, naming the nearest valid one."""
    return _checked(overrides, cls, groups(config_dir))


def _checked(
    overrides: Sequence[str], cls: type[Any], known: dict[str, list[str]]
) -> list[Override]:
    """The same, with the options of all groups, which take a look at the files to know."""
    parsed = _parse(overrides)
    for item in parsed:
        key, value = item.key_or_group, (item.input_line or "").partition("=")[2]
        if key.startswith("hydra"):
            continue
        group = key in known and (key in fields_of(cls) or key == "experiment")
        if group and "{" not in value:
            options = known[key]
            for choice in value.split(","):
                if choice not in (*options, "null", ""):
                    hint = did_you_mean(choice, options)
                    if key == "experiment" and choice in known.get("study", ()):
                        hint = f"it is a study: llm-pretrain study plan study={choice}"
                    raise UserError(f"{key}={choice}: unknown; {hint}")
        elif not item.is_delete():
            check_key(cls, key)
    return parsed


def register() -> None:
    """Give Hydra every field with its default, so that `--cfg` shows them all."""
    defaults = schema.to_dict(schema.TrainConfig())
    defaults["data"]["sources"] = {}
    defaults["run"].pop("dir")
    ConfigStore.instance().store(name="train_defaults", node=defaults)


def forced(text: str, item: Override) -> str:
    """The override as Hydra should see it: fields that YAML left out may be set without a '+'."""
    plain = item.key_or_group not in groups() and not item.key_or_group.startswith("hydra")
    return f"++{text}" if plain and text[0] not in "+~" else text


def sweep(parsed: Sequence[Override]) -> list[list[str]]:
    """The override lists of a multirun's jobs: every combination of the values."""
    choices = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
        if item.is_sweep_override()
        else [item.input_line or ""]
        for item in parsed
    ]
    return [list(combination) for combination in itertools.product(*choices)]


def swept_keys(parsed: Sequence[Override]) -> set[str]:
    """The keys that a multirun varies."""
    return {item.key_or_group for item in parsed if item.is_sweep_override()}


def sweep_name(overrides: Sequence[str], swept: set[str]) -> str:
    """What tells one job of a multirun from another, as a part of a file name."""
    plain = sorted(o.lstrip("+") for o in overrides)
    kept = ",".join(o for o in plain if o.partition("=")[0] in swept)
    return re.sub(r"[^\w.=,+-]+", "_", kept)[:120]


def _compose(
    name: str, overrides: Sequence[str], cls: type[Any], config_dir: Path | None = None
) -> dict[str, Any]:
    parsed = check_overrides(overrides, cls, config_dir)
    for item in parsed:
        if item.is_sweep_override():
            raise UserError(f"{item.input_line}: several values need --multirun")
    texts = [forced(text, item) for text, item in zip(overrides, parsed, strict=True)]
    texts += [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose(name, texts)
        data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error)) from error
    assert isinstance(data, dict)
    return typing.cast(dict[str, Any], data)


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"{str(error).splitlines()[0]} (write overrides as key=value)") from error


def _merge(data: dict[str, Any], option: dict[str, Any], cls: type[Any]) -> None:
    """Put the values of an option for the group `cls` over those that are there."""
    for key, value in option.items():
        owner = next(dataclasses_in(fields_of(cls).get(key)), None)
        # Only fields of the schema are merged. Where keys are free, as with sources or options of
        # sbatch, the option's are all there are: another mixture or cluster does not add to one.
        if owner and isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge(data[key], value, owner)
        else:
            data[key] = value


def _set(data: dict[str, Any], change: Override) -> None:
    *parents, leaf = change.key_or_group.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
    if change.is_delete():
        data.pop(leaf, None)
        return
    data[leaf] = copy.deepcopy(change.value())
