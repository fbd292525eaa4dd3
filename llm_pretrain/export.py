"""The command `export`: a checkpoint as Hugging Face Llama weights."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.checkpoint.tensors import fill
from llm_pretrain.data.tokenizer import read_tokenizer
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.model.hf import export_hf
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.runs import Run

_USAGE = "usage: llm-pretrain export RUN FOLDER [step=N]"


def export(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain export ARGUMENTS`; the exit code. Raises UserError for bad input."""
    places = [a for a in arguments if "=" not in a and not a.startswith("-")]
    options = [a for a in arguments if a not in places]
    if len(places) != 2 or any(not o.startswith("step=") for o in options):
        raise UserError(f"{_USAGE}; got {' '.join(arguments) or 'nothing'}")
    run, folder = Run.open(Path(places[0])), Path(places[1])
    store = CheckpointStore(run.checkpoints)
    step = _step(store, run, [o.removeprefix("step=") for o in options])
    store.verify(step)
    model = Transformer(run.config.model)
    state = {"model": {name: p.detach() for name, p in model.named_parameters()}}
    fill(store.path(step), state, distributed=False)
    length = run.config.data.sequence_length
    tokenizer = read_tokenizer(run.tokenizer_path, run.config.data.tokenizer.end_of_text)
    export_hf(
        run.config.model,
        model.state_dict(),
        folder,
        end_of_text_id=tokenizer.end_of_text_id,
        max_positions=length,
    )
    shutil.copyfile(run.tokenizer_path, folder / "tokenizer.json")
    print(f"{folder}: weights and tokenizer of {run.path} at step {step}")
    return EXIT_OK


def _step(store: CheckpointStore, run: Run, asked: Sequence[str]) -> int:
    if asked:
        if not asked[0].isdigit():
            raise UserError(f"step: '{asked[0]}' is no step; {_USAGE}")
        return int(asked[0])
    if not store.steps():
        raise UserError(f"{run.path}: has no checkpoint yet")
    return store.steps()[-1]
