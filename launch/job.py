"""The job that an executor runs: small enough to pickle, it holds a path and nothing else."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_pretrain.errors import EXIT_OK, RunInUseError, guarded


@dataclass(frozen=True)
class TrainJob:
    """Trains the run in a directory, from the config that lies there."""

    path: Path
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the job; None: all that the machine has."""

    def __call__(self) -> int:
        """Train it; the exit code. A run that another process trains just now is left to it."""
        # The executor hides every GPU from a job that did not ask it for some.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if self.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
        from llm_pretrain.train.start import resume  # noqa: PLC0415  (unpickling must stay cheap)

        def train(_: Sequence[str]) -> int:
            try:
                return resume(self.path)
            except RunInUseError as error:
                print(error, file=sys.stderr)
                return EXIT_OK

        return guarded(train, [])
