"""The command `export`: a checkpoint as Hugging Face Llama weights."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import describe, fill
from llm_pretrain.data.tokenizer import read_tokenizer
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean
from llm_pretrain.model.hf import SHARD_BYTES, check_export, export_hf
from llm_pretrain.runs import Run

_USAGE = "usage: llm-pretrain export RUN FOLDER [step=N] [max_shard_size=5GB]"
_OPTIONS = ("step", "max_shard_size")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B")
_MODEL = "model."


def export(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain export ARGUMENTS`; the exit code. Raises UserError for bad input."""
    (source, target), options = _parse(arguments)
    run, folder = Run.open(Path(source)), Path(target)
    store = CheckpointStore(run.checkpoints)
    step = _step(store, run, options.get("step"))
    shard_bytes = _bytes(options["max_shard_size"]) if "max_shard_size" in options else SHARD_BYTES
    check_export(run.config.model, folder)
    tokenizer = read_tokenizer(run.tokenizer_path, run.config.data.tokenizer.end_of_text)
    store.verify(step)
    checkpoint = store.path(step)
    described = {
        name.removeprefix(_MODEL): tensor
        for name, tensor in describe(checkpoint).items()
        if name.startswith(_MODEL)
    }

    def read(names: list[str]) -> dict[str, torch.Tensor]:
        tensors = {name: torch.empty_like(described[name], device="cpu") for name in names}
        fill(checkpoint, {"model": tensors})
        return tensors

    export_hf(
        run.config.model,
        described,
        read,
        folder,
        end_of_text_id=tokenizer.end_of_text_id,
        max_positions=run.config.data.sequence_length,
        shard_bytes=shard_bytes,
        extras={"tokenizer.json": run.tokenizer_path},
    )
    print(f"{folder}: weights and tokenizer of {run.path} at step {step}")
    return EXIT_OK


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The two places, and the options by name."""
    # A folder may have an = in its name too, but then not behind a plain word.
    given = [a for a in arguments if a.partition("=")[0].isidentifier() and "=" in a]
    options = dict(a.split("=", 1) for a in given)
    places = [a for a in arguments if a not in given]
    for name in options:
        if name not in _OPTIONS:
            raise UserError(f"{name}: no such option; {did_you_mean(name, _OPTIONS)}; {_USAGE}")
    if len(places) != 2 or any(a.startswith("-") for a in places):
        raise UserError(f"{_USAGE}; got {' '.join(arguments) or 'nothing'}")
    return places, options


def _step(store: CheckpointStore, run: Run, asked: str | None) -> int:
    if asked is not None:
        if not asked.isdigit():
            raise UserError(f"step: '{asked}' is no step; {_USAGE}")
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
