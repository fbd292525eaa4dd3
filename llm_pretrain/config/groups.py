"""The files of the config groups: the shipped ones in conf/, and those of a user's own folder."""

from pathlib import Path
from typing import Any

import yaml

from llm_pretrain.errors import UserError, did_you_mean


def conf_dir() -> Path:
    """The shipped configuration: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Config groups and their options, as 'model' -> ['demo', 'paper/124m', ...].

    `config_dir`: a folder of the user's own, with more of both.
    """
    found: dict[str, set[str]] = {}
    for root in _roots(config_dir):
        for file in root.glob("*/**/*.yaml"):
            group, *option = file.relative_to(root).with_suffix("").parts
            found.setdefault(group, set()).add("/".join(option))
    return {group: sorted(options) for group, options in sorted(found.items())}


def option(group: str, choice: str, config_dir: Path | None = None) -> dict[str, Any]:
    """What the file of a group's option sets. Raises UserError when a run cannot take it over."""
    asked = f"{group}={choice}"
    # As in Hydra, the shipped file is the one that counts where both folders have it.
    files = [root / group / f"{choice}.yaml" for root in _roots(config_dir)]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UserError(f"{asked}: no option; {did_you_mean(choice, groups(config_dir)[group])}")
    values: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    if "defaults" in values:
        raise UserError(f"{asked}: has a defaults list; write out its fields instead")
    return values


def _roots(config_dir: Path | None) -> list[Path]:
    return [conf_dir(), *([config_dir] if config_dir else [])]
