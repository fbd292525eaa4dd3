"""Print the README's table of layouts and engines: `python -m tests.engine.table [OVERRIDE ...]`.

About a minute on two cores. The overrides are those of `train`.
"""

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.engine.layouts import LAYOUTS, Fleet, table
from tests.ranks.commands import zygote
from tests.support import write_corpus


def main(overrides: list[str]) -> None:
    """Train every layout in a temporary folder and print the table."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_corpus(place / "words.jsonl")
        corpus, logs = place / "words.jsonl", place / "logs"
        logs.mkdir()
        plain = stack.enter_context(zygote(corpus, logs))
        deepspeed = stack.enter_context(zygote(corpus, logs, "deepspeed"))
        fleet = Fleet(place, place / "cache", lambda lay: deepspeed if lay.deepspeed else plain)
        runs = {name: fleet.train(layout, *overrides) for name, layout in LAYOUTS.items()}
        print(table(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
