"""What a rank was doing when another was lost, written down: torch's flight recorder, and stacks.

A run keeps this of the newest session that lost a rank, in `flight-recorder/session-N`:
`rank-0003.json`, by the rank itself, and `nccl_rank_3`, in torch's own format, on GPUs.
"""

import json
import os
import pickle
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C import _distributed_c10d

from llm_pretrain.errors import LostRankError
from llm_pretrain.records import now
from llm_pretrain.world import World

Entry = dict[str, Any]
"""What torch keeps of a collective."""

_NEWEST = 100
"""Collectives written down by a rank. A step has some for each block, and the last ones tell."""
_PREFIXES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Variables, new and old, with the place of NCCL's dump; its file names end in the rank."""
_NCCL = "nccl_rank_"
_HERE = str(Path(__file__).parents[1]) + os.sep
_ONLY_HANDS_ON = _HERE + "world.py"


def place(folder: Path, session: int) -> Path:
    """The folder of a session, the first of which is 1."""
    return folder / f"session-{session}"


def tidy(folder: Path) -> None:
    """Keep what the newest session wrote, if any did, and no empty folder."""
    sessions = sorted(folder.glob("session-*"), key=lambda path: int(path.name.split("-")[1]))
    full = [session for session in sessions if any(session.iterdir())]
    for session in set(sessions) - set(full[-1:]):
        shutil.rmtree(session, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def armed(folder: Path, world: World) -> Iterator[None]:
    """NCCL's watchdog, which ends a process that waits for too long, dumps into `folder` inside of
    the block, unless the environment names another place.

    torch reads the name when it dumps for the first time. It records, and dumps, by default.
    """
    if world.device.type != "cuda" or any(name in os.environ for name in _PREFIXES):
        yield
        return
    world.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    os.environ[_PREFIXES[0]] = str(folder / _NCCL)
    try:
        yield
    finally:
        del os.environ[_PREFIXES[0]]


def write(
    folder: Path, rank: int, error: LostRankError, stack: Sequence[traceback.FrameSummary]
) -> str:
    """Write down what this rank waited in when `error` ended it, and what else it was doing; a
    sentence about it. `stack`: of the main thread, outermost first. Raises OSError."""
    ours = [f for f in stack if f.filename.startswith(_HERE) and f.filename != _ONLY_HANDS_ON]
    entries = [_readable(entry) for entry in _recorded("_dump_fr_trace").get("entries", [])]
    last = _last(entries, ours[0]) if ours else None
    report = {
        "rank": rank,
        "time": now(),
        "error": str(error.__cause__ or error),
        "waited_at": _lines(stack),
        "last_collective": last,
        "other_threads": _other_threads(),
        "groups": _groups(),
        "collectives": entries[-_NEWEST:],
    }
    path = folder / f"rank-{rank:04d}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    nccl = _recorded("_dump_nccl_trace")
    if nccl.get("entries"):
        (folder / f"{_NCCL}{rank}").write_bytes(pickle.dumps(nccl))
    where = f" at {ours[-1].filename.removeprefix(_HERE)}:{ours[-1].lineno}" if ours else ""
    return f"It waited{where}; {_sentence(last)}. Details: {path}"


def _recorded(function: str) -> dict[str, Any]:
    """What torch has recorded; nothing when that is turned off, or torch has no such function.

    Private, but nothing public reads it: for the collectives of CPUs in every build of torch that
    we know, for NCCL's in those for CUDA.
    """
    dump = getattr(_distributed_c10d, function, None)
    # The bytes are torch's own, so nobody else can have put anything into them.
    return pickle.loads(dump()) if dump else {}


def _readable(entry: Entry) -> Entry:
    """A record of torch with a line for each frame of its stack, innermost first."""
    frames = [f"{f['filename']}:{f['line']} {f['name']}" for f in entry["frames"]]
    return {**entry, "frames": frames}


def _last(entries: Sequence[Entry], root: traceback.FrameSummary) -> Entry | None:
    """The newest collective that was begun inside of the function `root`, thus in its thread.

    Whether it has ended is not known: of gloo's collectives torch does not record it.
    """
    for entry in reversed(entries):
        if any(f.startswith(f"{root.filename}:{root.lineno} ") for f in entry["frames"]):
            return entry
    return None


def _sentence(last: Entry | None) -> str:
    if last is None:
        return "torch has recorded no collective"
    name = last["profiling_name"].rpartition(":")[2]
    number, description = last["process_group"]
    group = number if description == "undefined" else description
    return f"its last collective was {name} {last['collective_seq_id']} of group {group}"


def _groups() -> dict[str, dict[str, Any]]:
    """Description and ranks of each process group by its name; what torch itself writes of gloo's
    has neither."""
    # Private: there is no public list of groups.
    return {
        name: {"description": group.group_desc, "ranks": dist.get_process_group_ranks(group)}
        for group, name in dist.distributed_c10d._world.pg_names.items()
    }


def _other_threads() -> dict[str, list[str]]:
    """Where each other thread of Python is, innermost first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": _lines(traceback.extract_stack(frame))
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    }


def _lines(stack: Sequence[traceback.FrameSummary]) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(stack)]
