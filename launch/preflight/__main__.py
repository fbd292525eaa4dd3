"""`python -m launch.preflight`: the same as `llm-pretrain preflight`, for torchrun."""

import sys

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded

if __name__ == "__main__":
    sys.exit(guarded(dispatch, ["preflight", *sys.argv[1:]]))
