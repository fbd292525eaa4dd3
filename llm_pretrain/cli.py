"""The command `llm-pretrain`: finds the subcommand."""

import sys
from collections.abc import Callable, Sequence

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
  llm-pretrain average RUN FOLDER steps=[N,N]|last=K  the same of a mean of checkpoints
  llm-pretrain estimate [KEY=VALUE ...]               memory, traffic and speed of a run to come
  llm-pretrain bench [KEY=VALUE ...]                  measure how fast this machine trains
  llm-pretrain preflight [KEY=VALUE ...]              whether these nodes are fit to train
  llm-pretrain schedule show [RUN] [KEY=VALUE ...]    the learning rate, phase by phase, drawn
  llm-pretrain theory bound|transfer|extend|compare   what the theory says about learning rates
  llm-pretrain reanalyse RUNS.json                    published logs against theory and predictor
  llm-pretrain laws   fit|compare FILE...             scaling laws of losses, with intervals

'llm-pretrain train --help', 'branch', 'study', 'estimate' and 'bench --help' explain every KEY.
Exit codes: 0 done, 1 another rank was lost, 2 bad input, 3 estimate: it does not fit, 75 stopped on
request and saved: run it again to go on."""


def main() -> None:
    """Entry point of the command."""
    sys.exit(guarded(dispatch, sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    """Run the subcommand named first."""
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "train": _train,
        "branch": _branch,
        "status": _status,
        "tree": _tree,
        "report": _report,
        "study": _study,
        "export": _export,
        "average": _average,
        "estimate": _estimate,
        "bench": _bench,
        "preflight": _preflight,
        "schedule": _schedule,
        "theory": _theory,
        "reanalyse": _reanalyse,
        "laws": _laws,
    }
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_HELP)
        return EXIT_OK
    if arguments[0] == "--version":
        print(__version__)
        return EXIT_OK
    if arguments[0] not in commands:
        raise UserError(f"{arguments[0]}: no such command; {did_you_mean(arguments[0], commands)}")
    return commands[arguments[0]](arguments[1:])


def _train(arguments: Sequence[str]) -> int:
    if any(a in ("--help", "-h") for a in arguments):
        from llm_pretrain.config.help import train_help

        print(train_help())
        return EXIT_OK
    from llm_pretrain.train.command import train

    return train(arguments)


def _branch(arguments: Sequence[str]) -> int:
    from llm_pretrain.branch.command import branch

    return branch(arguments)


def _status(arguments: Sequence[str]) -> int:
    from launch.status import status

    return status(arguments)


def _tree(arguments: Sequence[str]) -> int:
    from llm_pretrain.branch.tree import tree

    return tree(arguments)


def _report(arguments: Sequence[str]) -> int:
    from llm_pretrain.report.command import report

    return report(arguments)


def _study(arguments: Sequence[str]) -> int:
    if not arguments or any(a in ("--help", "-h") for a in arguments):
        from llm_pretrain.config.help import study_help

        print(study_help())
        return EXIT_OK
    from llm_pretrain.study.command import study

    return study(arguments)


def _export(arguments: Sequence[str]) -> int:
    from llm_pretrain.export import export

    return export(arguments)


def _average(arguments: Sequence[str]) -> int:
    from llm_pretrain.export import average

    return average(arguments)


def _estimate(arguments: Sequence[str]) -> int:
    if any(a in ("--help", "-h") for a in arguments):
        from llm_pretrain.config.help import estimate_help

        print(estimate_help())
        return EXIT_OK
    from llm_pretrain.estimate.command import estimate

    return estimate(arguments)


def _bench(arguments: Sequence[str]) -> int:
    if any(a in ("--help", "-h") for a in arguments):
        from llm_pretrain.config.help import bench_help

        print(bench_help())
        return EXIT_OK
    from llm_pretrain.bench.command import bench

    return bench(arguments)


def _preflight(arguments: Sequence[str]) -> int:
    from launch.preflight.command import preflight

    return preflight(arguments)


def _schedule(arguments: Sequence[str]) -> int:
    from llm_pretrain.schedule.show import HELP, schedule

    if not arguments or any(a in ("--help", "-h") for a in arguments):
        print(HELP)
        return EXIT_OK
    return schedule(arguments)


def _theory(arguments: Sequence[str]) -> int:
    if not arguments or any(a in ("--help", "-h") for a in arguments):
        from llm_pretrain.theory.help import HELP

        print(HELP)
        return EXIT_OK
    from llm_pretrain.theory.command import theory

    return theory(arguments)


def _reanalyse(arguments: Sequence[str]) -> int:
    from llm_pretrain.reanalyse.command import reanalyse

    return reanalyse(arguments)


def _laws(arguments: Sequence[str]) -> int:
    if not arguments or any(a in ("--help", "-h") for a in arguments):
        from llm_pretrain.scaling.help import HELP

        print(HELP)
        return EXIT_OK
    from llm_pretrain.scaling.command import laws

    return laws(arguments)


if __name__ == "__main__":
    main()
