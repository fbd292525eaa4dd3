"""What `branch --help` and `tree --help` say."""

from llm_pretrain.config import schema
from llm_pretrain.config.help import describe

_BRANCH = """usage: llm-pretrain branch plan|apply|watch RUN [KEY=VALUE ...]

plan shows which branches exist, which would start and which cannot; apply starts what is missing;
watch follows a run that trains and starts each branch when its checkpoint appears; it looks every
30 seconds, or --every SECONDS, and ends when nothing is left to start or to wait for.
Without at= or ends=, the plan in the run's own config is used. Any field of a run that may differ
from its parent can be overridden beside these (see llm-pretrain train --help).
"""
_TREE = """usage: llm-pretrain tree RUNS

Shows the runs in the folder RUNS, or one run, as a tree: who came from whom, from which step, how
each stands, and its last losses."""


def branch_help() -> str:
    """Help of `llm-pretrain branch`."""
    return "\n".join([_BRANCH, *describe(schema.BranchArgs, "", skip=("overrides",))])


def tree_help() -> str:
    """Help of `llm-pretrain tree`."""
    return _TREE
