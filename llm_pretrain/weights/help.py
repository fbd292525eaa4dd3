"""What `export --help` and `average --help` say."""

USAGE = {
    "export": "usage: llm-pretrain export RUN FOLDER [step=N] [max_shard_size=5GB]",
    "average": "usage: llm-pretrain average RUN [RUN ...] [FOLDER] steps=[N,N,...]|last=K "
    "[max_shard_size=5GB]",
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


def export_help() -> str:
    """Help of `llm-pretrain export`."""
    return f"{USAGE['export']}\n{_EXPORT}"


def average_help() -> str:
    """Help of `llm-pretrain average`."""
    return f"{USAGE['average']}\n{_AVERAGE}"
