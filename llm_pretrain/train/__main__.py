"""`python -m llm_pretrain.train`: the same as `llm-pretrain train`, for torchrun."""

import sys

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded, leave

if __name__ == "__main__":
    leave(guarded(dispatch, ["train", *sys.argv[1:]]))
