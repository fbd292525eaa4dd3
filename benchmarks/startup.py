"""Seconds that a person waits for a command, as a whole process from start to exit.

`python -c pass` and `import torch` show how much of it is Python's and PyTorch's own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result import Row, load_average, parser, report, workplace
from llm_pretrain.config.compose import compose
from llm_pretrain.train.start import start

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = 20


def trained(place: Path) -> Path:
    """A run with a checkpoint at each of its 20 steps."""
    config = compose(
        [
            "experiment=demo",
            f"run.root={place}",
            f"schedule.total={CHECKPOINTS} steps",
            "schedule.warmup=1 steps",
            "model.width=32",
            "model.layers=1",
            "model.ffn=64",
            "data.sequence_length=32",
            f"data.cache={place / 'cache'}",
            "data.sources.stdlib.limit=80",
            "data.validation_fraction=0.2",
            "data.tokenizer.vocab_size=400",
            "eval.every=0 steps",
            "checkpoint.every=1 steps",
            "checkpoint.keep_every=1 steps",
            "plan=[]",
        ]
    )
    start(config)
    return Path(config.run.dir)


def commands(run: Path) -> dict[str, list[str]]:
    """What is timed, as arguments of the interpreter."""
    command = ["-m", "llm_pretrain.cli"]
    plan = ["branch", "plan", f"parent={run}", "at=[5 steps, 10 steps, 15 steps, 20 steps]"]
    return {
        "python -c pass": ["-c", "pass"],
        "python -c 'import torch'": ["-c", "import torch"],
        "python -c 'import llm_pretrain'": ["-c", "import llm_pretrain"],
        "llm-pretrain --help": [*command, "--help"],
        "llm-pretrain train --help": [*command, "train", "--help"],
        f"llm-pretrain branch plan, {CHECKPOINTS} checkpoints": [*command, *plan],
    }


def seconds(arguments: Sequence[str]) -> float:
    """Wall time of one process. Raises CalledProcessError when it fails."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def measure(place: Path, quick: bool) -> list[Row]:
    """A row for each command; they take turns, so that a busy moment hits all of them."""
    timed = commands(trained(place))
    samples: dict[str, list[float]] = {name: [] for name in timed}
    if not quick:
        for arguments in timed.values():
            seconds(arguments)  # files into memory, bytecode onto disk
    for _ in range(1 if quick else 7):
        for name, arguments in timed.items():
            samples[name].append(seconds(arguments))
    return [Row(name, "s", values) for name, values in samples.items()]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    given = parser("startup", __doc__).parse_args(arguments)
    load = load_average()
    with workplace(given.folder) as place:
        rows = measure(place.resolve(), given.quick)
    report("startup", arguments, rows, load)


if __name__ == "__main__":
    main(sys.argv[1:])
