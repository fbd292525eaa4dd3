"""How often training asks the file system for something, by what it does and by rank.

Counted are system calls that name a path in the run directory or in the prepared tokens, list a
folder, or flush a file: on a parallel file system such as Lustre each may be a request to a server
that all jobs share. Not counted are calls on a file that is open already: its state, position,
bytes and end. `strace` counts, in each rank of a small run. A step "that only trains" is one
without a row of metrics, evaluation or checkpoint. A checkpoint is written while steps go on, so
all calls below `checkpoints/`, those that delete old ones included, are divided by the number of
checkpoints, rounded up for each kind of call; what a step that saves does elsewhere is added.
"Start" ends with the first step, and finds prepared tokens. The lock, which rank 0 touches every 10
seconds, is left out.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from benchmarks.loop import QUICK, observed
from benchmarks.result import Row, load_average, parser, report, workplace
from llm_pretrain.errors import EXIT_BAD_INPUT

ROOT = Path(__file__).resolve().parents[1]
STEPS, LOG, EVALUATE, SAVE = 30, 4, 9, 7
UNIT = "operations"
_CALLS = "%file,getdents64,fsync,fdatasync,flock"
# With the filter in the kernel, only the calls that are counted take longer.
_STRACE = ("strace", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-e", f"trace={_CALLS}")
_LINE = re.compile(r"\d+ +(?P<name>\w+)\((?P<arguments>.*)")
_RANK = "import sys; from benchmarks.file_operations import rank; sys.exit(rank(sys.argv[1:]))"


@dataclass(frozen=True)
class Call:
    """A system call on a file below the place of the benchmark."""

    name: str
    folder: str
    """First part of the path: run, cache or marks."""
    file: str
    """Second part, without what a temporary name adds; empty for the folder itself."""


@dataclass
class Counts:
    """The calls of one rank."""

    steps: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))
    """By step; what came before the first and after the last has steps 1 and STEPS + 1."""
    checkpoints: list[Call] = field(default_factory=list)
    """Those of the thread that saves, and of what is deleted."""

    @classmethod
    def of(cls, calls: Iterable[Call]) -> "Counts":
        """Sort calls by the marks that `rank` left after each step."""
        counts, step = cls(), 1
        for call in calls:
            if call.folder == "marks":
                step = int(call.file) + 1
            elif (call.folder, call.file) == ("run", "checkpoints"):
                counts.checkpoints.append(call)
            elif call.file != "lock":
                counts.steps[step].append(call)
        return counts

    def rows(self, who: str) -> list[Row]:
        """A row for each thing that this rank does."""
        kinds = {
            "start": [1],
            "step that only trains": steps(),
            "row of metrics": steps(logs=True),
            "evaluation and its row": steps(evaluates=True),
        }
        rows = [Row(f"{who}: {kind}", UNIT, self._sizes(of)) for kind, of in kinds.items()]
        rows.append(Row(f"{who}: checkpoint", UNIT, [sum(self.checkpoint().values())]))
        rows.append(Row(f"{who}: end", UNIT, self._sizes([STEPS + 1])))
        return rows

    def checkpoint(self) -> Counter[str]:
        """Calls by name for a checkpoint, rounded up."""
        saving = steps(saves=True)
        beside = Counter(call.name for step in saving for call in self.steps[step])
        below = Counter(call.name for call in self.checkpoints)
        saved = sum(_saves(step) for step in range(1, STEPS + 1))
        return Counter(
            {
                name: -(-beside[name] // len(saving)) - (-below[name] // saved)
                for name in sorted(beside | below)
            }
        )

    def _sizes(self, of: Sequence[int]) -> list[float]:
        return [len(self.steps[step]) for step in of]


def steps(*, logs: bool = False, evaluates: bool = False, saves: bool = False) -> list[int]:
    """The steps after the first and before the last that do exactly this."""
    wanted = (logs, evaluates, saves)
    return [
        step
        for step in range(2, STEPS)
        if (step % LOG == 0, step % EVALUATE == 0, _saves(step)) == wanted
    ]


def _saves(step: int) -> bool:
    return step % SAVE == 0 or step == STEPS


def rank(arguments: Sequence[str]) -> int:
    """One rank of the run: `train` with a look at a file that never is after each step.

    Arguments: the folder of such files, then those of `train`; the exit code.
    """
    from llm_pretrain.errors import guarded  # noqa: PLC0415
    from llm_pretrain.train import session  # noqa: PLC0415
    from llm_pretrain.train.command import train  # noqa: PLC0415

    marks, *rest = arguments
    watching = observed(lambda step: (Path(marks) / str(step)).exists() or None)
    with mock.patch.object(session, "RunConsole", watching):
        return guarded(train, rest)


def read(trace: Path, place: Path) -> Iterator[Call]:
    """The calls in a trace that concern files below `place`."""
    path = re.compile(re.escape(f"{place}/") + r'(?P<folder>[^/"<>]+)/?(?P<file>[^/"<>]*)')
    for line in trace.read_text(errors="replace").splitlines():
        call = _LINE.match(line)
        found = path.search(call["arguments"]) if call else None
        # With AT_EMPTY_PATH a call asks about a file that is open.
        if call and found and call["name"] != "execve" and "AT_EMPTY_PATH" not in line:
            name = found["file"].partition("@")[0]
            name = name.removeprefix(".") if "@" in found["file"] else name
            yield Call(call["name"], found["folder"], name)


def train(place: Path, ranks: int, overrides: Sequence[str]) -> list[Counts]:
    """Train with so many ranks, each under `strace`; what each did.

    Raises RuntimeError with their output when one fails.
    """
    shutil.rmtree(place / "run", ignore_errors=True)
    traces = [place / f"trace-{i}" for i in range(ranks)]
    processes = [
        subprocess.Popen(
            [
                *(*_STRACE, "-o", str(trace)),
                *(sys.executable, "-c", _RANK, str(place / "marks"), *overrides),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for trace, environment in zip(traces, _environments(ranks), strict=True)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(said)[-3000:])
    return [Counts.of(read(trace, place)) for trace in traces]


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank, which strace would have to follow through it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    return [
        {**os.environ, **address, **common, "RANK": str(i), "LOCAL_RANK": str(i)}
        | {"PYTHONPATH": path}
        for i in range(ranks)
    ]


def measure(place: Path, worlds: Sequence[int], quick: bool) -> tuple[list[Row], dict[str, str]]:
    """Rows for every rank of every world size, and by name what a checkpoint calls."""
    overrides = [
        *("experiment=demo", "plan=[]", f"run.dir={place / 'run'}", *QUICK),
        *(f"data.cache={place / 'cache'}", "engine.device=cpu", "checkpoint.keep_last=2"),
        *(f"schedule.total={STEPS} steps", "schedule.warmup=1 steps", "eval.sequences=16"),
        *(f"logger.every={LOG} steps", f"eval.every={EVALUATE} steps"),
        f"checkpoint.every={SAVE} steps",
    ]
    if not quick:
        train(place, 1, overrides)  # prepares the tokens
    rows: list[Row] = []
    notes: dict[str, str] = {}
    for ranks in worlds:
        for i, counts in enumerate(train(place, ranks, overrides)):
            who = f"{ranks} rank{'s' if ranks > 1 else ''}, rank {i}"
            rows += counts.rows(who)
            calls = counts.checkpoint().items()
            notes[f"checkpoint with {who}"] = ", ".join(f"{name} {n}" for name, n in calls)
    return rows, notes


def missing() -> str | None:
    """Why nothing can be counted here; None: it can."""
    if shutil.which("strace") is None:
        return "strace is not installed; it is a package of every Linux distribution"
    probe = [*_STRACE, "-o", os.devnull, sys.executable, "-c", "pass"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {done.stderr.strip()}" if done.returncode else None


def main(arguments: Sequence[str]) -> None:
    """Count and print; exits with 2 where there is no strace."""
    given = parser("file_operations", __doc__).parse_args(arguments)
    why = missing()
    if why is not None:
        print(f"error: {why}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    load = load_average()
    with workplace(given.folder) as place:
        rows, notes = measure(place.resolve(), (1,) if given.quick else (1, 2), given.quick)
    report("file_operations", arguments, rows, load, **notes)


if __name__ == "__main__":
    main(sys.argv[1:])
