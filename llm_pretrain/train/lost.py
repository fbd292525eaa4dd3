"""What a rank does when another is lost: it finds out which one, and writes down what it did."""

import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary

from llm_pretrain.errors import LostRankError
from llm_pretrain.runs import Run
from llm_pretrain.train import flight, rollcall
from llm_pretrain.world import World


@dataclass(frozen=True)
class Witness:
    """What a rank can say once another is lost."""

    run: Run
    world: World
    hosts: Sequence[str]
    """Of each rank."""
    dumps: Path
    """Folder for what this session leaves."""

    def explained(self, error: LostRankError) -> LostRankError:
        """The error with the names of the ranks that do not answer a roll call, and with what this
        one waited in, of which more is written to `dumps`.

        The hosts of ranks that hang are added to the run's list of nodes to avoid.
        """
        return self._explained(
            error, traceback.extract_tb((error.__cause__ or error).__traceback__)
        )

    def of_silence(self, seconds: float) -> LostRankError:
        """The same when nothing raised an error, but no step has ended for `seconds`."""
        error = LostRankError(f"no step ended within {seconds:g} s")
        error.silent = True
        main = threading.main_thread().ident
        return self._explained(error, traceback.extract_stack(sys._current_frames()[main or 0]))

    def _explained(self, error: LostRankError, stack: Sequence[FrameSummary]) -> LostRankError:
        rank, size = self.world.rank, self.world.size
        try:
            rollcall.sign(self.run.rollcall_path, rank)
            # In between, since it takes a moment, and another rank's end may be this one's.
            doing = _written(self.dumps, rank, error, stack)
            gone = rollcall.missing(self.run.rollcall_path, size)
        except OSError:
            return error
        left = set(range(size)) - set(gone)
        if gone and left and error.silent and rank == min(left):
            # What hangs is more often a node than a program: a job avoids it from now on.
            new = {self.hosts[rank] for rank in gone} - set(self.run.failed_nodes())
            with self.run.failed_nodes_path.open("a") as file:
                file.writelines(f"{host}\n" for host in sorted(new))
        named = gone and left
        names = f"No answer from {rollcall.describe(gone, self.hosts)}. " if named else ""
        explained = LostRankError(f"{error}. {names}{doing}")
        explained.silent = error.silent
        return explained


def _written(dumps: Path, rank: int, error: LostRankError, stack: Sequence[FrameSummary]) -> str:
    try:
        return flight.write(dumps, rank, error, stack)
    except (OSError, RuntimeError) as problem:
        # A RuntimeError is torch's, about what it has recorded.
        return f"What it waited in could not be written: {problem}"
