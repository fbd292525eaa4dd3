"""What a machine has: the device, its memory, and which packages of interest are installed."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.result import device, load_average
from llm_pretrain.provenance import git
from llm_pretrain.records import now

PACKAGES = (
    *("llm-pretrain", "torch", "triton", "transformers", "torchao", "transformer-engine"),
    *("flash-attn", "flash-attn-3", "flash-attn-4", "torchtitan", "deepspeed"),
    *("hydra-core", "pydantic", "submitit", "datasets", "pyarrow", "tokenizers", "numpy"),
)
MISSING = "not installed"


def facts() -> dict[str, Any]:
    """All of it, for JSON. Opens the device, so it has a process of its own."""
    memory = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
    return {
        "date": now(),
        "device": device(),
        "memory": memory,
        "load_before": load_average(),
        "git": git(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING
