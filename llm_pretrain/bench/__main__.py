"""`python -m llm_pretrain.bench`: the same as `llm-pretrain bench`, for torchrun."""

import sys

from llm_pretrain.bench.command import bench
from llm_pretrain.errors import guarded, leave

if __name__ == "__main__":
    leave(guarded(bench, sys.argv[1:]))
