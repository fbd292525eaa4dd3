"""`python -m llm_pretrain.bench`: the same as `llm-pretrain bench`, for torchrun."""

import sys

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded, leave

if __name__ == "__main__":
    leave(guarded(dispatch, ["bench", *sys.argv[1:]]))
