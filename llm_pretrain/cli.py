"""The command `llm-pretrain`: finds the subcommand, or its help."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from llm_pretrain import __version__
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean, guarded

_HELP = f"""llm-pretrain {__version__}: a constant learning rate, and cooldowns from any checkpoint

  llm-pretrain train  [KEY=VALUE ...]                 train a run, or continue it
  llm-pretrain train  resume=RUN                      continue the run in directory RUN
  llm-pretrain branch plan  parent=RUN [KEY=VALUE ...]  show what would start
  llm-pretrain branch apply parent=RUN [KEY=VALUE ...]  start what is missing
  llm-pretrain branch watch RUN [KEY=VALUE ...]       start each when its checkpoint appears
  llm-pretrain status RUNS                            how runs and their jobs stand
  llm-pretrain tree   RUNS                            who came from whom, and how each stands
  llm-pretrain report RUNS                            write an HTML page about the runs
  llm-pretrain study  plan|apply|watch|fit|report study=NAME   sizes x horizons, and their law
  llm-pretrain export RUN FOLDER [step=N]             write Hugging Face Llama weights
  llm-pretrain average RUN [FOLDER] steps=[N,N]|last=K  the same of a mean of checkpoints
  llm-pretrain import HF_FOLDER RUN [KEY=VALUE ...]   a run that begins with Llama weights
  llm-pretrain estimate [KEY=VALUE ...]               memory, traffic and speed of a run to come
  llm-pretrain bench [KEY=VALUE ...]                  measure how fast this machine trains
  llm-pretrain preflight [KEY=VALUE ...]              whether these nodes are fit to train
  llm-pretrain schedule show [RUN] [KEY=VALUE ...]    the learning rate, phase by phase, drawn
  llm-pretrain theory bound|transfer|extend|compare   what the theory says about learning rates
  llm-pretrain reanalyse RUNS.json                    published logs against theory and predictor
  llm-pretrain laws   fit|compare FILE...             scaling laws of losses, with intervals

'llm-pretrain COMMAND --help' explains every KEY of a command.
Exit codes: 0 done, 1 a run failed or another rank was lost, 2 bad input, 3 estimate: it does not
fit, 75 stopped on request and saved: run it again to go on."""
_ASKS = ("--help", "-h")


@dataclass(frozen=True)
class _Command:
    """A subcommand. What it needs is imported when it runs, and nothing of that for its help."""

    run: str
    """'module:function' that takes the arguments and gives the exit code."""
    help: str
    """'module:function' that gives the text."""
    bare: bool = False
    """Whether it can do without arguments; the others show their help then."""


_COMMANDS = {
    "train": _Command(
        "llm_pretrain.train.command:train", "llm_pretrain.config.help:train_help", bare=True
    ),
    "branch": _Command(
        "llm_pretrain.branch.command:branch", "llm_pretrain.branch.help:branch_help"
    ),
    "status": _Command("launch.status:status", "launch.help:status_help"),
    "tree": _Command("llm_pretrain.branch.tree:tree", "llm_pretrain.branch.help:tree_help"),
    "report": _Command(
        "llm_pretrain.report.command:report", "llm_pretrain.report.help:report_help"
    ),
    "study": _Command("llm_pretrain.study.command:study", "llm_pretrain.study.help:study_help"),
    "export": _Command(
        "llm_pretrain.weights.command:export", "llm_pretrain.weights.help:export_help"
    ),
    "average": _Command(
        "llm_pretrain.weights.command:average", "llm_pretrain.weights.help:average_help"
    ),
    "import": _Command(
        "llm_pretrain.weights.imported:import_weights", "llm_pretrain.weights.help:import_help"
    ),
    "estimate": _Command(
        "llm_pretrain.estimate.command:estimate",
        "llm_pretrain.estimate.help:estimate_help",
        bare=True,
    ),
    "bench": _Command(
        "llm_pretrain.bench.command:bench", "llm_pretrain.bench.help:bench_help", bare=True
    ),
    "preflight": _Command(
        "launch.preflight.command:preflight", "launch.preflight.help:preflight_help", bare=True
    ),
    "schedule": _Command(
        "llm_pretrain.schedule.show:schedule", "llm_pretrain.schedule.help:schedule_help"
    ),
    "theory": _Command(
        "llm_pretrain.theory.command:theory", "llm_pretrain.theory.help:theory_help"
    ),
    "reanalyse": _Command(
        "llm_pretrain.reanalyse.command:reanalyse", "llm_pretrain.reanalyse.help:reanalyse_help"
    ),
    "laws": _Command("llm_pretrain.scaling.command:laws", "llm_pretrain.scaling.help:laws_help"),
}


def main() -> None:
    """Entry point of the command."""
    sys.exit(guarded(dispatch, sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    """Run the subcommand named first, or print its help; the exit code. Raises UserError."""
    if not arguments or arguments[0] in (*_ASKS, "help"):
        return _show(_HELP)
    name, *rest = arguments
    if name == "--version":
        print(__version__)
        return EXIT_OK
    if name not in _COMMANDS:
        raise UserError(f"{name}: no such command; {did_you_mean(name, _COMMANDS)}")
    command = _COMMANDS[name]
    if any(word in _ASKS for word in rest) or not (rest or command.bare):
        return _show(_found(command.help)())
    code: int = _found(command.run)(rest)
    return code


def _show(text: str) -> int:
    # A reader such as `head` may leave early.
    from llm_pretrain.terminal import write

    write(f"{text}\n")
    return EXIT_OK


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


if __name__ == "__main__":
    main()
