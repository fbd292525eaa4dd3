"""Which code a run was made with."""

import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_pretrain import __version__

_PACKAGES = ("torch", "deepspeed", "numpy", "tokenizers", "datasets", "hydra-core")


@dataclass(frozen=True)
class Code:
    """What made a run: asking takes tens of milliseconds, so not for each of a thousand."""

    git: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def current(cls) -> "Code":
        """As it is now."""
        return cls(git(), versions())


def versions() -> dict[str, str]:
    """Of Python, this package and those that decide what it computes."""
    found = {"python": platform.python_version(), "llm-pretrain": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git() -> dict[str, Any]:
    """The commit of this package, and whether its files differ from it; None: not known."""
    folder = Path(__file__).parent
    try:
        _output(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _output(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_output(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def diff() -> str:
    """How the files of this package differ from its commit; empty where git does not know."""
    try:
        return _output(Path(__file__).parents[1], "diff", "HEAD") + "\n"
    except (OSError, subprocess.SubprocessError):
        return ""


def _output(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
