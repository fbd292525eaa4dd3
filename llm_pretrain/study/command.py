"""The command `study`: plan, apply, watch, fit, report."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from pydantic import TypeAdapter
from rich.console import Console

from llm_pretrain import atomic
from llm_pretrain.config.arguments import (
    file_option,
    seconds_option,
    split_arguments,
)
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose_command, override
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import (
    EXIT_CONTINUE,
    EXIT_FAILED,
    EXIT_OK,
    UserError,
    did_you_mean,
    writing,
)
from llm_pretrain.records import now
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.study import show
from llm_pretrain.study.budget import Budget, budget, check_limits
from llm_pretrain.study.config import StudyArgs, StudyConfig
from llm_pretrain.study.expand import Stem, folder, stems
from llm_pretrain.study.reconcile import Standing, Starter, impossible, survey
from llm_pretrain.study.results import Found, collect
from llm_pretrain.study.savings import savings
from llm_pretrain.terminal import console, write
from llm_pretrain.train.start import launch_all

_LOOK_SECONDS = 30.0


class Study:
    """A study as the command line describes it."""

    def __init__(self, arguments: Sequence[str], config_dir: Path | None) -> None:
        """Compose and expand it. Raises UserError for what cannot be."""
        asked = compose_command("study", arguments, StudyArgs, config_dir)
        self.config: StudyConfig = asked.study
        self.stems: list[Stem] = stems(asked.study, asked.overrides, config_dir)
        self.folder = folder(asked.study)
        self.described: str = yaml.safe_dump(
            TypeAdapter(StudyArgs).dump_python(asked, mode="json"), sort_keys=False, width=100
        )
        self._config_dir = config_dir
        self._clusters = [o for o in asked.overrides if o.lstrip("+").startswith("cluster")]

    def cluster(self, config: TrainConfig) -> ClusterConfig:
        """Where a run is trained: as its config says, but for what the command line says."""
        if not self._clusters:
            return config.cluster
        return override(config, self._clusters, self._config_dir).cluster

    def survey(self) -> list[Standing]:
        """How its runs stand now."""
        return survey(self.stems)

    def budget(self, found: Sequence[Standing]) -> Budget:
        """What it costs. Raises UserError when a run could not be laid out on its cluster."""
        waiting = Console(stderr=True, quiet=not sys.stderr.isatty())
        with waiting.status("estimating speeds"):
            return budget(found, self.cluster)


def study(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain study ARGUMENTS`; the exit code. Raises UserError for bad input."""
    actions: dict[str, Callable[[Sequence[str]], int]] = {
        "plan": _plan,
        "apply": _apply,
        "watch": _watch,
        "fit": _fit,
        "report": _report,
    }
    action, *rest = arguments
    if action not in actions:
        raise UserError(f"study {action}: no such command; {did_you_mean(action, actions)}")
    return actions[action](rest)


def _read(arguments: Sequence[str]) -> Study:
    overrides, config_dir, flags = split_arguments(arguments)
    if flags:
        raise UserError(f"{flags[0]}: no option of this command; see llm-pretrain study --help")
    return Study(overrides, config_dir)


def _plan(arguments: Sequence[str]) -> int:
    asked = _read(arguments)
    show.plan(asked.config, asked.budget(asked.survey()), console())
    return EXIT_OK


def _apply(arguments: Sequence[str]) -> int:
    asked = _read(arguments)
    return _start(asked, once=True, seconds=0.0)


def _watch(arguments: Sequence[str]) -> int:
    rest, seconds = seconds_option(arguments, "--every", _LOOK_SECONDS)
    return _start(_read(rest), once=False, seconds=seconds)


def _start(asked: Study, *, once: bool, seconds: float) -> int:
    """Start what can start, again and again; `once`: until nothing starts any more."""
    found = asked.survey()
    planned = asked.budget(found)
    show.plan(asked.config, planned, console())
    check_limits(planned, asked.config.limits)
    if not impossible(found):
        asked.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(asked.folder / "study.yaml", asked.described)
    starter, worst = Starter(asked.cluster, launch_all), EXIT_OK
    while True:
        started, code = starter.round(found)
        worst = max(worst, code)
        if code == EXIT_CONTINUE:
            return code
        if not started:
            if once or not show.under_way(found):
                break
            time.sleep(seconds)
        found = asked.survey()
    print(show.summary(found))
    return worst or (EXIT_FAILED if show.failed(found) else EXIT_OK)


def _fit(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    rest, counting = Counting.parse([a for a in arguments if a != "--json"])
    asked = _read(rest)
    found = _results(asked, counting)
    # SciPy takes a while to import.
    from llm_pretrain.scaling.render import show as show_laws  # noqa: PLC0415
    from llm_pretrain.study.laws import fits, refusals  # noqa: PLC0415

    laws = fits(asked.config, found)
    if as_json:
        spent = savings(asked.folder)
        data = {
            "study": asked.config.name,
            "counting": str(counting or Counting()),
            "laws": {n: law if isinstance(law, str) else asdict(law) for n, law in laws.items()},
            "losses": [asdict(one.point) for one in found.measured],
            "excluded": [asdict(one) for one in found.excluded],
            "savings": None if spent is None else asdict(spent),
        }
        write(json.dumps(data, indent=1) + "\n")
        return EXIT_OK
    screen = console()
    show.results(asked.config, found, screen)
    for label, law in laws.items():
        if not isinstance(law, str):
            screen.print(f"\n[bold]Law of {label}[/]", highlight=False)
            show_laws(law, screen)
    for text in refusals(laws):
        screen.print(f"\n{text}", highlight=False, markup=False)
    screen.print(str(counting or Counting()), highlight=False)
    show.savings(savings(asked.folder), screen)
    return EXIT_OK


def _report(arguments: Sequence[str]) -> int:
    rest, page = file_option(arguments, "--out", "one PAGE.html")
    rest, figure = file_option(rest, "--figure", "one FILE.svg")
    rest, counting = Counting.parse(rest)
    asked = _read(rest)
    output = page or asked.folder / "study.html"
    found = _results(asked, counting)
    from llm_pretrain.study.laws import fits  # noqa: PLC0415  (as above)
    from llm_pretrain.study.page import render  # noqa: PLC0415

    planned = asked.budget(asked.survey())
    laws = fits(asked.config, found)
    spent = savings(asked.folder)
    text = render(
        asked.config,
        found,
        planned=planned,
        laws=laws,
        spent=spent,
        counting=str(counting or Counting()),
        made=now(),
    )
    with writing("--out", output):
        atomic.write_text(output, text)
    if figure:
        from llm_pretrain.study.figure import draw  # noqa: PLC0415  (matplotlib)

        with writing("--figure", figure):
            draw(asked.config, found, figure)
    show.results(asked.config, found, console())
    print(*[path for path in (output, figure) if path], sep="\n")
    return EXIT_OK


def _results(asked: Study, counting: Counting | None) -> Found:
    found = collect(asked.stems, counting)
    if not found.measured:
        raise UserError(
            f"study={asked.config.name}: nothing has been measured in {asked.folder} yet; train it "
            f"with llm-pretrain study apply study={asked.config.name}"
        )
    return found
