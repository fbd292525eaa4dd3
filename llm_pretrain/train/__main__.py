"""`python -m llm_pretrain.train`: the same as `llm-pretrain train`, for torchrun."""

import sys

from llm_pretrain.errors import guarded, leave
from llm_pretrain.train.command import train

if __name__ == "__main__":
    leave(guarded(train, sys.argv[1:]))
