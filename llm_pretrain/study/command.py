"""The command `study`: plan, apply, watch, fit, report."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from llm_pretrain import atomic
from llm_pretrain.config.arguments import file_option, seconds_option
from llm_pretrain.errors import (
    EXIT_BAD_INPUT,
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
from llm_pretrain.study.asked import Study
from llm_pretrain.study.budget import check_limits
from llm_pretrain.study.reconcile import Starter, check, failed, under_way
from llm_pretrain.study.results import Found, collect
from llm_pretrain.terminal import console, write
from llm_pretrain.train.start import launch_all

if TYPE_CHECKING:
    from llm_pretrain.scaling.laws import Laws

_LOOK_SECONDS = 30.0


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


def _plan(arguments: Sequence[str]) -> int:
    asked = Study(arguments)
    show.plan(asked.config, asked.budget(asked.survey()), console())
    return EXIT_OK


def _apply(arguments: Sequence[str]) -> int:
    return _start(Study(arguments), once=True, seconds=0.0)


def _watch(arguments: Sequence[str]) -> int:
    rest, seconds = seconds_option(arguments, "--every", _LOOK_SECONDS)
    return _start(Study(rest), once=False, seconds=seconds)


def _start(asked: Study, *, once: bool, seconds: float) -> int:
    """Start what can start, again and again; `once`: until nothing starts any more."""
    found, limits = asked.survey(), asked.config.limits
    planned = asked.budget(found)
    show.plan(asked.config, planned, console())
    check_limits(planned, limits)
    check(found, asked.cluster)
    asked.write()
    starter, worst = Starter(asked.cluster, launch_all, limits.jobs), EXIT_OK
    while True:
        started, code = starter.round(found)
        worst = max(worst, code)
        if code == EXIT_CONTINUE:
            return code
        if not started:
            if once or not under_way(found):
                break
            time.sleep(seconds)
        found = asked.survey()
    print(show.summary(found))
    if starter.waiting:
        print(show.waiting(starter.waiting, asked.folder))
    return worst or (EXIT_FAILED if failed(found) else EXIT_OK)


def _fit(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    rest, counting = Counting.parse([a for a in arguments if a != "--json"])
    asked = Study(rest)
    found = _results(asked, counting)
    # SciPy takes a while to import.
    from llm_pretrain.study.laws import chosen, fits  # noqa: PLC0415

    laws = fits(asked.config, found)
    spent = asked.savings(found, counting)
    said = str(counting or Counting())
    if as_json:
        data = {
            "study": asked.config.name,
            "counting": said,
            "laws": {n: law if isinstance(law, str) else asdict(law) for n, law in laws.items()},
            "losses": [asdict(one.point) for one in found.measured],
            "excluded": [asdict(one) for one in found.excluded],
            "savings": None if spent is None else asdict(spent),
        }
        write(json.dumps(data, indent=1) + "\n")
    else:
        _show_fit(asked, found, laws, [said, *show.saved(spent)])
    return EXIT_BAD_INPUT if isinstance(laws[chosen(asked.config)], str) else EXIT_OK


def _show_fit(
    asked: Study, found: Found, laws: "Mapping[str, Laws | str]", notes: Sequence[str]
) -> None:
    from llm_pretrain.scaling.render import show as show_laws  # noqa: PLC0415  (SciPy)
    from llm_pretrain.study.laws import refusals  # noqa: PLC0415

    screen = console()
    show.results(asked.config, found, screen)
    for label, law in laws.items():
        if not isinstance(law, str):
            screen.print(f"\n[bold]Law of {label}[/]", highlight=False)
            show_laws(law, screen)
    for text in refusals(laws):
        screen.print(f"\n{text}", highlight=False, markup=False)
    for text in notes:
        screen.print(text, highlight=False, markup=False, soft_wrap=True)


def _report(arguments: Sequence[str]) -> int:
    rest, page = file_option(arguments, "--out", "one PAGE.html")
    rest, figure = file_option(rest, "--figure", "one FILE.svg")
    rest, counting = Counting.parse(rest)
    asked = Study(rest)
    output = page or asked.folder / "study.html"
    found = _results(asked, counting)
    from llm_pretrain.study.laws import fits  # noqa: PLC0415  (as above)
    from llm_pretrain.study.page import render  # noqa: PLC0415

    planned = asked.budget(asked.survey(), counting)
    laws = fits(asked.config, found)
    spent = asked.savings(found, counting)
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
        reasons = show.left_out(found)
        raise UserError(
            f"{asked.words}: nothing has been measured in {asked.folder} yet:\n  "
            + "\n  ".join(reasons)
            + f"\ntrain it with llm-pretrain study apply {asked.words}"
        )
    return found
