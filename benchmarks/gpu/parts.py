"""The parts, each a list of commands: what runs, in which order, and what is left out."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import plan
from benchmarks.gpu.plan import Bench
from benchmarks.gpu.search import MOST, OutOfTimeError, largest, likely, too_large
from benchmarks.gpu.sitting import MEMORY, TIME, Outcome, Sitting
from benchmarks.gpu.study import study

PEERS = ("124M", "1B", "3B", "360M")
_QUICK_MOST = 2
_TOGETHER = 0.35
"""Of a device's memory, which the state of all sides may take for them to take turns."""
_PEERS_STATE = 2.5
"""The state of all sides in copies of ours: ours, the same in float32, and half of it in bf16."""
GAP = "fp8 against bf16, the same 300 steps of 1B"
_GAP_SECONDS = 330.0


class FailedError(Exception):
    """A command that ended without a result; the message says why."""


def check(sitting: Sitting) -> None:
    """Whether things work at all: what is chosen, and a short training."""
    step = Bench("step of 124M", "124M", compiled=False)
    if sitting.wanted(step.name):
        _bench(sitting, step, size=2)
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        short = ["schedule.total=20 steps", "schedule.warmup=5 steps", "plan=[]"]
        small = ["data.sources.stdlib.limit=80", "data.validation_fraction=0.2", *plan.TINY]
        small += ["data.tokenizer.vocab_size=400", "eval.sequences=16", f"data.cache={cache}"]
        command = _module("llm_pretrain.train", "experiment=demo", f"run.dir={place}/run")
        compiled = str(not sitting.quick).lower()
        more = ["precision=bf16", f"engine.compile={compiled}", *short, *small]
        _plain(sitting, "training for 20 steps", [*command, *more])


def speed(sitting: Sitting) -> None:
    """Steps of every model, compiled and not, with each kernel; memory beside the estimate."""
    _benches(sitting, plan.speed(quick=sitting.quick))


def profile(sitting: Sitting) -> None:
    """Steps of several passes, taken apart."""
    _benches(sitting, plan.profile(quick=sitting.quick))


def fp8(sitting: Sitting) -> None:
    """What 8 bits cost in loss, then what they gain in speed."""
    _gap(sitting)
    _benches(sitting, plan.fp8(quick=sitting.quick))


def peers(sitting: Sitting) -> None:
    """Every model by us and by Hugging Face's Llama, in one process."""
    for name in PEERS[:1] if sitting.quick else PEERS:
        bench = Bench(name, name)
        if sitting.wanted(name) and sitting.may_begin(name, 2 * bench.seconds):
            _compete(sitting, bench)


def _compete(sitting: Sitting, bench: Bench) -> None:
    state = _PEERS_STATE * bench.state
    together = sitting.quick or state <= _TOGETHER * sitting.capacity
    options = [*(["--quick"] if sitting.quick else []), *([] if together else ["--apart"])]
    # All sides keep their state where they take turns, and the peers keep all logits.
    room = sitting.capacity - (state - bench.state if together else 0)
    start = _QUICK_MOST if sitting.quick else max(1, _start(bench, room) // 2)

    def attempt(size: int) -> dict[str, Any] | None:
        batch = [f"data.micro_batch={size}", f"data.global_batch={size}", "optimizer.lr=1e-4"]
        overrides = [*bench.overrides(quick=sitting.quick), *batch]
        return _measured(sitting, _module("benchmarks.peers", *options, *overrides), 120)

    # Halved until all sides fit; larger ones are not looked for, as three sides must compile.
    _search(sitting, bench.name, attempt, start=start, most=start)


def _gap(sitting: Sitting) -> None:
    if not sitting.wanted(GAP) or not sitting.may_begin(GAP, _GAP_SECONDS):
        return
    options = ["--quick", "--steps=6"] if sitting.quick else ["--steps=300"]
    other = [plan.FP8, *(["precision.emulate=true"] if sitting.quick else [])]
    shape = plan.TINY if sitting.quick else ("model=llama_1b", "engine.compile=true")
    with tempfile.TemporaryDirectory() as place:
        command = _module("benchmarks.fp8_gap", *options, *(f"--other={o}" for o in other))
        overrides = [*shape, f"data.cache={place}"]
        try:
            result = _measured(sitting, [*command, *overrides], 0)
        except FailedError as error:
            sitting.record(GAP, why=str(error))
        else:
            sitting.record(GAP, result, None if result else MEMORY)


def _benches(sitting: Sitting, benches: Sequence[Bench]) -> None:
    sizes: dict[str, int] = {}
    for bench in benches:
        if not sitting.wanted(bench.name) or not sitting.may_begin(bench.name, bench.seconds):
            continue
        size = _bench(sitting, bench, sizes.get(bench.like or ""))
        if size is not None:
            sizes[bench.name] = size


def _bench(sitting: Sitting, bench: Bench, size: int | None = None) -> int | None:
    """Record one bench, with `size` sequences in a pass or as many as fit; the size."""
    most = size or (_QUICK_MOST if sitting.quick else MOST)
    start = size or (most if sitting.quick else _start(bench, sitting.capacity))

    def attempt(size: int) -> dict[str, Any] | None:
        batch = [f"data.micro_batch={size}", f"data.global_batch={size * bench.passes}"]
        steps = ["--steps", "2"] if sitting.quick else []
        overrides = [*bench.overrides(quick=sitting.quick), *batch, *steps]
        command = _module("llm_pretrain.bench", *overrides)
        return _measured(sitting, command, bench.seconds)

    def hopeless(size: int, found: dict[str, Any]) -> bool:
        peak = found["memory"].get("peak_allocated", 0)
        return too_large(size, peak, bench.state, sitting.capacity)

    return _search(sitting, bench.name, attempt, start=start, most=most, hopeless=hopeless)


def _start(bench: Bench, capacity: float) -> int:
    """The micro-batch to try first. The estimate is of bf16, and knows no kernel's own buffers."""
    plain = replace(bench, more=())
    return likely(plain.overrides(quick=False), int(capacity))


def _search(
    sitting: Sitting,
    name: str,
    attempt: Callable[[int], dict[str, Any] | None],
    *,
    start: int,
    most: int,
    hopeless: Callable[[int, dict[str, Any]], bool] = lambda _size, _found: False,
) -> int | None:
    """Record what `attempt` gives for the largest size that fits; the size."""
    try:
        found = largest(attempt, start, most, hopeless)
    except FailedError as error:
        sitting.record(name, why=str(error))
        return None
    except OutOfTimeError:
        sitting.record(name, why=TIME)
        return None
    if found is None:
        sitting.record(name, why=MEMORY)
        return None
    size, result = found
    sitting.record(name, {"micro_batch": size, **result})
    return size


def _measured(sitting: Sitting, command: list[str], least: float) -> dict[str, Any] | None:
    """What the command writes to its --out; None when memory ran out.

    Raises OutOfTimeError when fewer than `least` seconds are left, FailedError with the reason.
    """
    if not sitting.quick and sitting.left < least:
        raise OutOfTimeError
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "result.json"
        done = sitting.run([*command, "--out", str(out)])
        if done.out_of_memory:
            return None
        if done.code != 0 or done.ended:
            raise FailedError(done.why)
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def _plain(sitting: Sitting, name: str, command: list[str]) -> None:
    """Record whether a command works."""
    if sitting.wanted(name) and sitting.may_begin(name, 30):
        done: Outcome = sitting.run(command)
        last = next((line for line in reversed(done.text.splitlines()) if line.strip()), "")
        result = {"seconds": done.seconds, "last_line": last.strip()}
        sitting.record(name, None if done.code else result, done.why if done.code else None)


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


PARTS: dict[str, Callable[[Sitting], None]] = {
    "check": check,
    "speed": speed,
    "peers": peers,
    "fp8": fp8,
    "profile": profile,
    "study": study,
}
