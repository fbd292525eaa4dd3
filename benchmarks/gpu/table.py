"""The GPU section of RESULTS.md: a table of each part, also of what is not measured yet."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import parts, plan, study
from benchmarks.gpu.machine import MISSING
from benchmarks.gpu.plan import Bench
from benchmarks.gpu.records import Measured
from benchmarks.peers import AGAIN, MIXED, OURS, PURE
from benchmarks.result import Row

_GIB = 2**30
_ABOUT = {
    "check": "Whether things work there at all.",
    "speed": (
        f"A step of the engine on random tokens, sequences of {plan.SEQUENCE:,}, the largest power "
        "of two as micro-batch that fits, one pass for an update. MFU counts attention as a full "
        "square and is of the datasheet's peak; beside it the share of the fastest matrix product "
        "measured in the same process. Aims: 55% of that at 1B and above, memory within 5% of the "
        "estimate."
    ),
    "peers": (
        "`python -m benchmarks.peers`: our engine and Hugging Face's Llama, same model, values and "
        "batches, all of them compiled. Aim: 1.10 times the best of them."
    ),
    "fp8": (
        "Speed with the same micro-batch in bf16 and in fp8, and `python -m benchmarks.fp8_gap`: "
        "1B on the standard library's source, same seed and data, the loss on held-out text. Aims: "
        "1.30 times at 3B and above, less than 0.005 nats."
    ),
    "profile": (
        f"One update of {plan.PASSES} passes under torch's profiler, by part; the floor is what "
        "the same work takes alone."
    ),
    "study": (
        "`study=gpu_mini`: four sizes, four horizons each from one trunk at a constant rate, and a "
        "cosine to the longest at twice the trunk's rate, on the standard library's source. Rates "
        "are not tuned, and the text is read several times."
    ),
}
_STEP = (
    *("what", "micro-batch", "tokens/s", "min", "max", "n", "MFU", "of matmul"),
    *("peak GiB", "/ estimate", "attention"),
)
_ROWS = ("figure", "unit", "median", "min", "max", "n")


def section(part: str, folders: Iterable[Path]) -> str:
    """The subsection about a part."""
    measured = Measured.read(part, folders)
    bodies = {
        "check": _check,
        "speed": lambda m: _steps(m, plan.speed()),
        "peers": _peers,
        "fp8": _fp8,
        "profile": _profile,
        "study": _study,
    }
    about = textwrap.fill(_ABOUT[part], 100)
    lines = [f"### {part}", "", about, "", *measured.head(), "", *bodies[part](measured)]
    return "\n".join(lines).rstrip() + "\n"


def replaced(text: str, part: str, new: str) -> str:
    """RESULTS.md with `new` in place of the subsection of a part, or at the end of "GPU"."""
    begin = text.index("## GPU\n")
    end = text.find("\n## ", begin)
    end = end + 1 if end >= 0 else len(text)
    old = text.find(f"### {part}\n", begin, end)
    if old < 0:
        return f"{text[:end].rstrip()}\n\n{new.strip()}\n\n{text[end:]}".rstrip() + "\n"
    stop = text.find("\n### ", old, end)
    stop = stop + 1 if stop >= 0 else end
    return f"{text[:old]}{new.strip()}\n\n{text[stop:]}".rstrip() + "\n"


def _check(measured: Measured) -> Iterator[str]:
    names = ("step of 124M", "training for 20 steps")
    yield from _head(("what", "came of it"), 2)
    for name in names:
        result = measured.result(name)
        said = result.get("last_line", "works") if result else measured.why(name)
        yield _line([name, said])
    for part, by in ((measured.result(names[0]) or {}).get("computes") or {}).items():
        yield _line([part, by])


def _steps(measured: Measured, benches: Sequence[Bench]) -> Iterator[str]:
    yield from _head(_STEP, 1)
    for bench in benches:
        result = measured.result(bench.name)
        if result is None:
            yield _line([bench.name, "", measured.why(bench.name), *[""] * (len(_STEP) - 3)])
        else:
            yield _line([bench.name, *_step_cells(result)])


def _step_cells(result: dict[str, Any]) -> list[str]:
    rate = result["step"]["tokens_per_second"]
    row = Row("", "", rate["samples"]).cells()
    memory = result["memory"]
    peak, ratio = memory.get("peak_allocated"), memory.get("ratio_to_estimate")
    return [
        str(result["micro_batch"]),
        *row[2:],
        _percent(_share(result, "datasheet")),
        _percent(_share(result, "measured matmul")),
        f"{peak / _GIB:.1f}" if peak else "",
        f"{ratio:.3f}" if ratio else "",
        result["computes"]["attention"].split(" ")[0],
    ]


def _share(result: dict[str, Any], against: str) -> float | None:
    used = result["step"]["utilisation"]
    found = (u["value"] for u in used if u["counting"] == "full square" and u["against"] == against)
    return next(found, None)


def _peers(measured: Measured) -> Iterator[str]:
    yield from _head(_ROWS, 2)
    for name in parts.PEERS:
        result = measured.result(name)
        if result is None:
            for what, unit in _competitors():
                yield _line([f"{name}: {what}", unit, measured.why(name), "", "", ""])
            continue
        for row in result["rows"]:
            cells = Row(f"{name}: {row['what']}", row["unit"], row["samples"]).cells()
            yield _line(cells)
        yield _line([f"{name}: micro-batch ({result['turns']})", "", result["micro_batch"], *"   "])
        for side, difference in result["first_difference"].items():
            if side != AGAIN:
                yield _line([f"{name}: {_apart(side)}", "nats", f"{difference:.1e}", *"   "])
    yield _line(["torchtitan", "tokens/s", _torchtitan(measured), *"   "])


def _competitors() -> Iterator[tuple[str, str]]:
    for side in (OURS, MIXED, PURE):
        yield side, "tokens/s"
    for side in (MIXED, PURE):
        yield f"{OURS} / {side}", "ratio"
    yield "micro-batch", ""
    for side in (MIXED, PURE):
        yield _apart(side), "nats"


def _apart(side: str) -> str:
    return f"first loss, difference from {side}"


def _torchtitan(measured: Measured) -> str:
    """Not run by anything here: whether it could be."""
    versions = [call["versions"].get("torchtitan", MISSING) for call in measured.calls]
    if not versions:
        return "not yet measured"
    if versions[-1] == MISSING:
        return "no: it is not installed there"
    return f"no: {versions[-1]} is installed, but nothing here runs it"


def _fp8(measured: Measured) -> Iterator[str]:
    benches = plan.fp8()
    yield from _steps(measured, benches)
    yield ""
    yield from _head(("figure", "value"), 1)
    for one, eight in zip(benches[::2], benches[1::2], strict=True):
        both = [measured.result(bench.name) for bench in (eight, one)]
        rates = [r["step"]["tokens_per_second"]["median"] for r in both if r]
        ratio = f"{rates[0] / rates[1]:.3f}" if len(rates) == 2 else "not yet measured"
        yield _line([f"{one.model}: fp8 / bf16, tokens/s", ratio])
    gap = measured.result(parts.GAP)
    for kind in ("held_out", "training"):
        what = f"1B: loss in fp8 - in bf16, nats, {kind.replace('_', '-')}"
        if gap is None:
            yield _line([what, measured.why(parts.GAP)])
            continue
        found = gap[kind]
        of = {"held_out": "sequences", "training": f"blocks of {gap['block']} steps at the end"}[
            kind
        ]
        said = f"{found['mean']:+.5f} ± {found['stderr']:.5f} ({found['count']} {of})"
        yield _line([what, said])
    if gap is not None:
        losses = " and ".join(f"{run['held_out']:.4f}" for run in gap["runs"])
        yield _line([f"held-out loss in bf16 and fp8 after {gap['steps']} steps", losses])


def _profile(measured: Measured) -> Iterator[str]:
    yield from _head(("what", "part", "ms", "share", "floor, ms", "of its floor"), 2)
    for bench in plan.profile():
        result = measured.result(bench.name)
        if result is None:
            yield _line([bench.name, "", measured.why(bench.name), "", "", ""])
            continue
        profile, floors = result["profile"], result["floors"]
        ordered = sorted(profile["parts"].items(), key=lambda part: -part[1])
        rest = profile["wall"] - profile["busy"]
        for part, seconds in [*((p, s) for p, s in ordered if s > 0), ("nothing", rest)]:
            floor = floors.get(part, {}).get("seconds")
            cells = [f"{1e3 * seconds:.2f}", f"{seconds / profile['wall']:.1%}"]
            least = [f"{1e3 * floor:.2f}", f"{seconds / floor:.2f}"] if floor else ["", ""]
            yield _line([bench.name, part, *cells, *least])
        waits = profile["synchronisations"]
        yield _line([bench.name, "the host waits, times", str(waits), "", "", ""])
    yield ""
    yield from _steps(measured, plan.profile())


def _study(measured: Measured) -> Iterator[str]:
    yield from _head(("result", "parameters", "tokens", "held-out loss"), 1)
    for name, tokens in study.expected():
        result = measured.result(name)
        if result is None:
            why = measured.why(name) if name in measured.items else measured.why(study.RUNS)
            yield _line([name, "", f"{tokens:,}", why])
        else:
            loss = f"{result['loss']:.4f}"
            yield _line([name, f"{result['params']:,}", f"{result['tokens']:,}", loss])
    yield ""
    yield from _head(("law of the cooldowns", "value", "95% interval"), 1)
    found = measured.result(study.LAW)
    for name in study.PARAMETERS:
        if found is None:
            yield _line([name, measured.why(study.LAW), ""])
            continue
        value = found["law"][name]
        ends = ["open" if value[end] is None else f"{value[end]:.4g}" for end in ("low", "high")]
        yield _line([name, f"{value['value']:.4g}", " to ".join(ends)])
    for what, key in (("FLOPs", "flops"), ("device time", "seconds")):
        spent = (found or {}).get("savings", {}).get("saved", [])
        said = (
            f"{spent[0]['needed'][key] / spent[0]['scratch'][key]:.3f}"
            if spent
            else measured.why(study.LAW)
        )
        yield _line([f"{what}, trunks with cooldowns / from scratch", said, ""])


def _head(columns: Sequence[str], left: int) -> list[str]:
    return [_line(columns), f"|{'---|' * left}{'---:|' * (len(columns) - left)}"]


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).strip() for cell in cells)} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
