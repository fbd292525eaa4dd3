"""The bench for a person: rates, the step against its peaks, and where its time goes."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_pretrain.bench.figure import Figure
from llm_pretrain.bench.profile import PHASES, rows
from llm_pretrain.bench.result import DATASHEET, NOT_MEASURED, Result
from llm_pretrain.train.hardware import device_name

_WIDTH = 100
_GIB = 2**30


def show(result: Result, held: int) -> str:
    """All of it. `held`: bytes on the device by the estimate."""
    console = Console(width=_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(escape(_headline(result)))
        console.print(_rates_table(result))
        console.print(_step_table(result))
        console.print(_utilisation_table(result))
        for line in (*_peak_lines(result), *_memory_lines(result, held), ""):
            console.print(escape(line))
        console.print(_parts_table(result))
        for line in (*_phase_lines(result), *_floor_lines(result), *_wait_lines(result)):
            console.print(escape(line))
    return captured.get()


def _headline(result: Result) -> str:
    config, world = result.config, result.world
    lines = [
        f"{world.size} x {device_name(world.device)}, {config.precision.name}, "
        f"{config.engine.name}; a step is {result.passes} x {result.rows} sequences of "
        f"{config.data.sequence_length:,} tokens on each",
        *(str(part) for part in result.settled.chosen),
    ]
    return "\n".join(lines)


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _rates_table(result: Result) -> Table:
    """What was measured alone."""
    table = _table("Alone", ["", "unit"], ["median", "min", "max"])
    for figure in result.rates:
        _add(table, figure)
    if result.fp8_missing:
        table.add_row(f"fp8 matmul: {result.fp8_missing}")
    table.add_section()
    for alone in result.alone:
        for seconds, rate in zip((alone.forward, alone.both), alone.rates, strict=True):
            _add(table, seconds, 1e3, "ms")
            _add(table, rate)
    return table


def _add(table: Table, figure: Figure, scale: float = 1.0, unit: str | None = None) -> None:
    values = (figure.median, min(figure.samples), max(figure.samples))
    table.add_row(figure.name, unit or figure.unit, *(_number(v * scale) for v in values))


def _step_table(result: Result) -> Table:
    count = len(result.step.seconds.samples)
    table = _table(f"The whole step, {count} times", ["", "unit"], ["median", "min", "max"])
    _add(table, result.step.seconds, 1e3, "ms")
    _add(table, result.tokens_per_second(1))
    if result.world.size > 1:
        _add(table, result.tokens_per_second(result.world.size))
    return table


def _utilisation_table(result: Result) -> Table:
    """By both countings of attention, against each peak."""
    used = result.utilisation()
    seconds = result.step.seconds.median
    peaks = [f"% of the {n} peak, {_number(p / 1e12)}" for n, p in result.peaks.items()]
    title = used[0]["name"]
    title = title.upper() if title == "mfu" else title.capitalize()
    table = _table(title, ["attention counted as"], ["TFLOP/s of a device", *peaks])
    for counting, flops in result.flops.items():
        shares = [f"{100 * u['value']:.1f}" for u in used if u["counting"] == counting]
        table.add_row(counting, _number(flops / seconds / 1e12), *shares)
    return table


def _peak_lines(result: Result) -> Iterator[str]:
    if DATASHEET not in result.peaks:
        name = device_name(result.world.device)
        yield f"no datasheet's {result.kind} peak is known for '{name}', only the measured one"


def _memory_lines(result: Result, held: int) -> Iterator[str]:
    measured = result.step.memory
    estimated = f"estimated {held / _GIB:.3f} GiB"
    if measured is None:
        yield f"peak memory of a device: {NOT_MEASURED}; {estimated}"
        return
    reserved = f", {(result.step.reserved or 0) / _GIB:.3f} GiB with what torch keeps free"
    yield (
        f"peak memory of a device: {measured / _GIB:.3f} GiB{reserved}; {estimated}, "
        f"{measured / held:.3f} of it"
    )


def _parts_table(result: Result) -> Table:
    """The parts of one step that was profiled, which makes it slower."""
    profile = result.profile
    table = _table("One step under the profiler", ["part"], ["ms", "share", "floor, ms"])
    for name, seconds in rows(profile, result.world.device.type):
        floor = result.floors.get(name)
        least = _number(floor.seconds * 1e3) if floor else ""
        table.add_row(name, _number(seconds * 1e3), f"{seconds / profile.wall:.1%}", least)
    table.add_section()
    table.add_row("in all", _number(profile.wall * 1e3), "100.0%")
    return table


def _phase_lines(result: Result) -> Iterator[str]:
    profile = result.profile
    spent = ((name, profile.phases[name]) for name in PHASES)
    yield "busy in " + ", ".join(f"{n} {_number(s * 1e3)} ms" for n, s in spent if s > 0)
    if profile.hidden > 0:
        yield f"{_number(profile.hidden * 1e3)} ms of exchanges and copies behind computation"


def _floor_lines(result: Result) -> Iterator[str]:
    """The largest part and its own floor."""
    parts = result.profile.parts
    largest = max(parts, key=lambda name: parts[name])
    floor = result.floors.get(largest)
    if floor is None:
        yield f"largest part: {largest}, {_number(parts[largest] * 1e3)} ms; it has no known floor"
        return
    yield (
        f"largest part: {largest}, {_number(parts[largest] * 1e3)} ms, "
        f"{parts[largest] / floor.seconds:.2f} of its floor of {_number(floor.seconds * 1e3)} ms "
        f"({floor.by})"
    )


def _wait_lines(result: Result) -> Iterator[str]:
    waits = result.profile.waits
    yield f"the host waits for the device within the step: {sum(waits.values()) or 'never'}"
    yield from (f"  {count} x {place}" for place, count in waits.items())


def _number(value: float) -> str:
    """With four digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
