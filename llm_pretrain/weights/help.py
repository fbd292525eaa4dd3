"""What `export --help`, `average --help` and `import --help` say."""

USAGE = {
    "export": "usage: llm-pretrain export RUN FOLDER [step=N] [max_shard_size=5GB]",
    "average": "usage: llm-pretrain average RUN [RUN ...] [FOLDER] steps=[N,N,...]|last=K "
    "[max_shard_size=5GB]",
    "import": "usage: llm-pretrain import HF_FOLDER RUN [KEY=VALUE ...] [--config-dir DIR]",
}
_EXPORT = """
Writes weights, config and tokenizer of a run as a Hugging Face Llama in the new folder FOLDER.

  step=N              of the checkpoint, else the newest
  max_shard_size=5GB  of a file; larger weights get numbered files and an index"""
_AVERAGE = """
Writes the mean of a run's checkpoints, or of several runs', as `llm-pretrain export` writes one.
FOLDER is new; without it the mean is beside the first run, named after what is averaged:

  llm-pretrain average runs/demo steps=[300,450,600]    writes runs/demo-mean-300-450-600

  steps=[N,N,...]     of the checkpoints, in each run
  last=K              instead: the newest K of each run
  max_shard_size=5GB  of a file; larger weights get numbered files and an index"""
_IMPORT = """
Makes the run directory RUN with the weights of the Hugging Face Llama in HF_FOLDER as a checkpoint
at step 0, which `llm-pretrain train resume=RUN` goes on from, on as many ranks as you like. Model
and tokenizer are those of HF_FOLDER. Any other field of a run can be given (see llm-pretrain train
--help) and has its usual default; a warmup is usual, since the moments begin anew.

  llm-pretrain import runs/demo-hf runs/tuned experiment=demo plan=[]
  llm-pretrain train resume=runs/tuned"""


def export_help() -> str:
    """Help of `llm-pretrain export`."""
    return f"{USAGE['export']}\n{_EXPORT}"


def average_help() -> str:
    """Help of `llm-pretrain average`."""
    return f"{USAGE['average']}\n{_AVERAGE}"


def import_help() -> str:
    """Help of `llm-pretrain import`."""
    return f"{USAGE['import']}\n{_IMPORT}"
