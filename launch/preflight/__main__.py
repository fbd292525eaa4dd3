"""`python -m launch.preflight`: the same as `llm-pretrain preflight`, for torchrun."""

import sys

from launch.preflight.command import preflight
from llm_pretrain.errors import guarded

if __name__ == "__main__":
    sys.exit(guarded(preflight, sys.argv[1:]))
