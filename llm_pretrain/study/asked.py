"""The study that a command line is about: by the name of its file, or by the folder of its runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from rich.console import Console

from llm_pretrain import atomic
from llm_pretrain.config.arguments import of_cluster, split_arguments
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose_command, override
from llm_pretrain.config.groups import groups
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError, writing
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.study.budget import Budget, budget
from llm_pretrain.study.config import StudyArgs, StudyConfig
from llm_pretrain.study.expand import Stem, folder, stems
from llm_pretrain.study.reconcile import Standing, held_back, survey
from llm_pretrain.study.results import Found
from llm_pretrain.study.savings import Savings, savings

_FILE = "study.yaml"
"""What describes a study in the folder of its runs: StudyArgs, with all that was asked."""


class Study:
    """A study as the command line describes it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Compose and expand it. Raises UserError for what cannot be."""
        rest, config_dir, flags = split_arguments(arguments)
        if flags:
            raise UserError(f"{flags[0]}: no option of this command; see llm-pretrain study --help")
        places = [text for text in rest if "=" not in text and not text.startswith("~")]
        overrides = [text for text in rest if text not in places]
        described = _described(places, overrides)
        asked = compose_command("study", overrides, StudyArgs, config_dir, described=described)
        self.words = places[0] if places else f"study={asked.study.name}"
        """How a command line names it."""
        self.config: StudyConfig = asked.study
        self.stems: list[Stem] = stems(asked.study, asked.overrides, config_dir)
        self.folder = folder(asked.study)
        self._asked, self._config_dir = asked, config_dir
        self._clusters = of_cluster(asked.overrides)

    def write(self) -> None:
        """Describe it in its folder, where the next command may read it. Raises UserError."""
        data = TypeAdapter(StudyArgs).dump_python(self._asked, mode="json")
        with writing("study.root", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(data, sort_keys=False, width=100)
            atomic.write_text(self.folder / _FILE, text)

    def cluster(self, config: TrainConfig) -> ClusterConfig:
        """Where a run is trained: as its config says, but for what the command line says."""
        if not self._clusters:
            return config.cluster
        return override(config, self._clusters, self._config_dir).cluster

    def survey(self) -> list[Standing]:
        """How its runs stand now."""
        return survey(self.stems)

    def budget(self, found: Sequence[Standing], counting: Counting | None = None) -> Budget:
        """What it costs. Raises UserError when a run could not be laid out on its cluster."""
        waiting = Console(stderr=True, quiet=not sys.stderr.isatty())
        with waiting.status("estimating speeds"):
            allowed = held_back(found, self.config.limits.jobs)
            return budget(allowed, self.cluster, counting)

    def savings(self, found: Found, counting: Counting | None = None) -> Savings | None:
        """What reuse saved."""
        causal = (counting or Counting()).attention == "causal"
        return savings(self.stems, found.runs, causal=causal)


def _described(places: Sequence[str], overrides: Sequence[str]) -> dict[str, Any] | None:
    """What the folder says that the arguments name; None: they name none. Raises UserError."""
    if not places:
        return None
    named = [text for text in overrides if text.startswith("study=")]
    if len(places) > 1 or named:
        both = " and ".join([*named, *places])
        raise UserError(f"{both}: one study at a time, by its folder or as study=NAME")
    place = Path(places[0])
    if not (place / _FILE).is_file():
        name = places[0] in groups()["study"]
        hint = f"study={places[0]}" if name else "study=NAME"
        what = f"has no {_FILE}" if place.is_dir() else "no such folder"
        raise UserError(f"{place}: {what}; a new study is asked for as {hint}")
    try:
        data = yaml.safe_load((place / _FILE).read_text())
        study = data["study"]
        if _folder(study) != place.resolve():
            # Moved or copied, or seen from elsewhere.
            whole = place if place.name not in ("", "..") else place.resolve()
            study |= {"root": str(whole.parent), "name": whole.name}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{place / _FILE}: describes no study ({error})") from error
    described: dict[str, Any] = data
    return described


def _folder(study: dict[str, Any]) -> Path:
    """Where the plain values of a study say that its runs are."""
    return Path(study["root"], study["name"]).resolve()
