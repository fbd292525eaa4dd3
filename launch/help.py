"""What `status --help` says."""

_STATUS = """usage: llm-pretrain status RUNS

Shows how each run in the folder RUNS stands, or one run: by its directory, and by Slurm where it
was handed to it, with the reason when it waits or has failed."""


def status_help() -> str:
    """Help of `llm-pretrain status`."""
    return _STATUS
