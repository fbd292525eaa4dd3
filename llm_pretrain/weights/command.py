"""The commands `export` and `average`: checkpoints, or their mean, as Hugging Face weights."""

import re
from collections.abc import Sequence
from pathlib import Path

from llm_pretrain.checkpoint.average import Mean, verified
from llm_pretrain.checkpoint.store import CheckpointStore, describe_steps
from llm_pretrain.config.arguments import check_flags
from llm_pretrain.data.tokenizer import read_tokenizer
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean
from llm_pretrain.model.hf import SHARD_BYTES, check_export, export_hf
from llm_pretrain.runs import Run
from llm_pretrain.weights.help import USAGE

_OPTIONS = {"export": ("step", "max_shard_size"), "average": ("steps", "last", "max_shard_size")}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B")
_STEPS = re.compile(r"\[?\s*(\d+(?:\s*,\s*\d+)*)\s*\]?")


def export(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain export ARGUMENTS`; the exit code. Raises UserError for bad input."""
    places, options = _parse("export", arguments)
    if len(places) != 2:
        raise UserError(f"{USAGE['export']}; got {' '.join(arguments) or 'nothing'}")
    run, folder = Run.open(Path(places[0])), Path(places[1])
    step = _step(CheckpointStore(run.checkpoints), run, options.get("step"))
    _write([(run, [step])], folder, options)
    print(f"{folder}: weights and tokenizer of {run.path} at step {step}")
    return EXIT_OK


def average(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain average ARGUMENTS`; the exit code. Raises UserError for bad input.

    The mean of several checkpoints of a run, or of several runs: with last=K of the newest ones.
    """
    places, options = _parse("average", arguments)
    if not places or ("steps" in options) == ("last" in options):
        raise UserError(f"{USAGE['average']}; got {' '.join(arguments) or 'nothing'}")
    *others, last = (Path(place) for place in places)
    # The folder is new, so what holds a run is one more to average.
    own = not others or Run.exists(last)
    runs = [Run.open(_named(place)) for place in ([*others, last] if own else others)]
    chosen = [(run, _chosen(run, options)) for run in runs]
    if sum(len(steps) for _, steps in chosen) < 2:
        raise UserError(f"a mean needs two checkpoints or more; {USAGE['average']}")
    folder = _beside(chosen) if own else last
    _write(chosen, folder, options)
    for run, steps in chosen:
        print(f"{folder}: mean of {run.path} at {', '.join(map(str, steps))}")
    return EXIT_OK


def _named(place: Path) -> Path:
    """The place, with the folder's own name when it is written as a dot."""
    return place if place.name not in ("", "..") else place.resolve()


def _beside(chosen: Sequence[tuple[Run, list[int]]]) -> Path:
    """Where a mean goes that was given no folder: beside the first run, named after its parts."""
    (first, steps), *others = chosen
    name = "-".join([first.path.name, "mean", *map(str, steps)])
    for run, theirs in others:
        name = "-".join([name, "and", run.path.name, *map(str, theirs)])
    return first.path.with_name(name)


def _write(chosen: Sequence[tuple[Run, list[int]]], folder: Path, options: dict[str, str]) -> None:
    """Export the mean of checkpoints, which of a single one is itself, with the first's config."""
    run = chosen[0][0]
    size = options.get("max_shard_size")
    shard_bytes = SHARD_BYTES if size is None else _bytes(size)
    check_export(run.config.model, folder)
    tokenizer = read_tokenizer(run.tokenizer_path, run.config.data.tokenizer.end_of_text)
    for other, _ in chosen[1:]:
        if other.tokenizer_path.read_bytes() != run.tokenizer_path.read_bytes():
            raise UserError(f"{other.path}: has another tokenizer than {run.path}")
    mean = Mean([p for r, steps in chosen for p in verified(CheckpointStore(r.checkpoints), steps)])
    export_hf(
        run.config.model,
        mean.described,
        mean.read,
        folder,
        end_of_text_id=tokenizer.end_of_text_id,
        max_positions=run.config.data.sequence_length,
        shard_bytes=shard_bytes,
        extras={"tokenizer.json": run.tokenizer_path},
    )


def _chosen(run: Run, options: dict[str, str]) -> list[int]:
    """The steps of `run` that are asked for, ascending."""
    steps = CheckpointStore(run.checkpoints).steps()
    if "last" in options:
        last = options["last"]
        if not last.isdigit() or int(last) == 0:
            raise UserError(f"last: '{last}' is no number of checkpoints; {USAGE['average']}")
        if int(last) > len(steps):
            raise UserError(f"last: {last} of {run.path}, but {describe_steps(steps)}")
        return steps[-int(last) :]
    match = _STEPS.fullmatch(options["steps"])
    asked = [int(step) for step in match[1].split(",")] if match else []
    if not asked or len(set(asked)) < len(asked):
        raise UserError(
            f"steps: '{options['steps']}' is no list of different steps; write steps=[300,400,500]"
        )
    return sorted(asked)


def _parse(command: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The places, and the options by name."""
    # A folder may have an = in its name too, but then not behind a plain word.
    given = [a for a in arguments if a.partition("=")[0].isidentifier() and "=" in a]
    options = dict(a.split("=", 1) for a in given)
    places = [a for a in arguments if a not in given]
    for name in options:
        if name not in _OPTIONS[command]:
            near = did_you_mean(name, _OPTIONS[command])
            raise UserError(f"{name}: no such option; {near}; {USAGE[command]}")
    check_flags(command, [a for a in places if a.startswith("-")], _OPTIONS[command])
    return places, options


def _step(store: CheckpointStore, run: Run, asked: str | None) -> int:
    if asked is not None:
        if not asked.isdigit():
            raise UserError(f"step: '{asked}' is no step; {USAGE['export']}")
        return int(asked)
    if not store.steps():
        raise UserError(f"{run.path}: has no checkpoint yet")
    return store.steps()[-1]


def _bytes(size: str) -> int:
    """Bytes of a size with its unit, in powers of 1000, or of 1024 with an i. Raises UserError.

    >>> _bytes("5GB"), _bytes("1.5 MiB")
    (5000000000, 1572864)
    """
    match = _SIZE.fullmatch(size)
    if match is None or float(match[1]) == 0:
        raise UserError(
            f"max_shard_size: '{size}' is no size of a file; give a number with its unit, such as "
            "5GB, 500MB or 2GiB"
        )
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(prefix) + 1))
