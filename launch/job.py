"""The job that an executor runs: small enough to pickle, it holds a path and nothing else."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_pretrain.errors import EXIT_OK, RunInUseError, guarded


@dataclass(frozen=True)
class TrainJob:
    """Trains the run in a directory, from the config that lies there."""

    path: Path

    def __call__(self) -> int:
        """Train it; the exit code. A run that another process trains just now is left to it."""
        from llm_pretrain.train.start import resume  # noqa: PLC0415  (unpickling must stay cheap)

        def train(_: Sequence[str]) -> int:
            try:
                return resume(self.path)
            except RunInUseError as error:
                print(error, file=sys.stderr)
                return EXIT_OK

        return guarded(train, [])
