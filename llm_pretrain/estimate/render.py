"""The estimate for a person: what a device holds, what a rank sends, how long an update takes."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.memory import GIB, RESERVE
from llm_pretrain.estimate.plan import RECOMPUTE, Estimate
from llm_pretrain.estimate.speed import ASSUMPTIONS, Speed
from llm_pretrain.estimate.traffic import Network

_PIPE_WIDTH = 120
_ROWS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "moments": "moments",
    "accumulated": "gradients not reduced before the last pass",
    "gathered": "parameters of whole blocks, gradients on their way",
    "activations": "activations",
    "working": "working memory of a block",
    "loss": "logits and loss",
}


def show(estimate: Estimate, config: TrainConfig) -> None:
    """Print all of it; tables on a terminal and in a pipe alike."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(escape(_headline(estimate, config)), highlight=False)
    console.print(_memory_table(estimate, config))
    for line in _storage_lines(estimate, config):
        console.print(escape(line), highlight=False)
    if estimate.flows:
        console.print(_traffic_table(estimate, config))
    if estimate.speed:
        console.print(_speed_table(estimate.speed, config))
    if estimate.unknown:
        console.print(escape(f"no speed: {'; '.join(estimate.unknown)}"), highlight=False)
    _list(console, "Notes", [*_notes(estimate, config)])
    if estimate.speed:
        _list(console, "Assumed", [*ASSUMPTIONS, _rates(config)])
        _list(console, f"Sources of cluster={config.cluster.name}", config.cluster.hardware.sources)


def verdict(estimate: Estimate, config: TrainConfig) -> str:
    """Whether the run fits, in words; empty when the profile does not know the memory."""
    if estimate.shortages:
        short = (f"{s.need / GIB:.1f} GiB of {s.limit:g} ({s.name})" for s in estimate.shortages)
        return f"does not fit: {'; '.join(short)}"
    memory, limit = estimate.memory[config.engine.recompute], config.cluster.hardware.memory
    return f"fits: {memory.device / GIB:.1f} GiB of {limit:g}" if limit else ""


def _headline(estimate: Estimate, config: TrainConfig) -> str:
    layout, engine, cluster, data = estimate.layout, config.engine, config.cluster, config.data
    rows = data.global_batch // layout.data_size // estimate.passes
    how = f"replicate {layout.replicate} x shard {layout.shard}"
    how += f" x context {layout.context}" if layout.context > 1 else ""
    how += f" x tensor {layout.tensor}" if layout.tensor > 1 else ""
    if engine.name == "deepspeed":
        how = f"ZeRO stage {engine.zero_stage}"
    offload = f", offload={engine.offload}" if engine.offload != "none" else ""
    return (
        f"{estimate.parameters:,} parameters, {config.precision.name}, on "
        f"{cluster.nodes} x {cluster.devices_per_node} {cluster.hardware.device}\n"
        f"{how}{offload}; an update is {data.global_batch:,} sequences of {data.sequence_length:,} "
        f"tokens, on each rank {estimate.passes} x {rows}"
    )


def _memory_table(estimate: Estimate, config: TrainConfig) -> Table:
    asked = config.engine.recompute
    table = Table(title="Memory of a device at its worst moment, GiB", title_justify="left")
    table.add_column("")
    for mode in RECOMPUTE:
        mark = " (asked for)" if mode == asked else ""
        table.add_column(f"recompute={mode}{mark}", justify="right")
    for category, name in _ROWS.items():
        sizes = [estimate.memory[mode].held[category] for mode in RECOMPUTE]
        if any(sizes):
            table.add_row(name, *(f"{size / GIB:.2f}" for size in sizes))
    table.add_row("CUDA, NCCL, fragmentation (assumed)", *[f"{RESERVE / GIB:.2f}"] * len(RECOMPUTE))
    limit = config.cluster.hardware.memory
    of = f" of {limit:g}" if limit else ""
    totals = [estimate.memory[mode].device / GIB for mode in RECOMPUTE]
    table.add_section()
    table.add_row("total", *(f"{total:.2f}{of}" for total in totals))
    table.add_row("the worst moment", *(estimate.memory[mode].when for mode in RECOMPUTE))
    return table


def _storage_lines(estimate: Estimate, config: TrainConfig) -> Iterator[str]:
    yield verdict(estimate, config) or "fits: unknown, cluster.hardware.memory is not known"
    memory = estimate.memory[config.engine.recompute]
    limit = config.cluster.hardware.host_memory
    state = sum(memory.offloaded.values())
    yield (
        f"host memory for each device: {memory.host / GIB:.2f} GiB"
        f"{f' of {limit:g}' if limit else ''}: {memory.staging / GIB:.2f} to save checkpoints from"
        f"{f', {state / GIB:.2f} of offloaded state' if state else ''}"
    )
    saving = f", about {estimate.saving:.0f} s to write" if estimate.saving else ""
    yield f"checkpoint: {estimate.checkpoint / 1e9:,.1f} GB on disk{saving}, while training goes on"


def _traffic_table(estimate: Estimate, config: TrainConfig) -> Table:
    network = Network(estimate.layout, config.cluster)
    table = Table(title="Traffic of a rank in one update", title_justify="left")
    table.add_column("exchange")
    table.add_column("type")
    table.add_column("link")
    for name in ("ranks", "times", "GB", "seconds"):
        table.add_column(name, justify="right")
    for flow in estimate.flows:
        purpose = flow.purpose
        seconds = network.seconds(purpose, flow.bytes)
        table.add_row(
            purpose.name,
            purpose.dtype,
            purpose.link,
            str(purpose.ranks),
            str(flow.count),
            f"{flow.bytes / 1e9:.3f}",
            "unknown" if seconds is None else f"{seconds:.3f}",
        )
    return table


def _speed_table(speed: Speed, config: TrainConfig) -> Table:
    table = Table(title="An update", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("matrix products, recomputed ones too", speed.products),
        ("attention", speed.attention),
        ("everything else, at the memory's rate", speed.other),
        ("exchanges that computation waits for", speed.exposed),
        ("FSDP's or ZeRO's exchanges that nothing hides", speed.waiting),
        ("total", speed.step),
    ):
        table.add_row(name, f"{value:.3f} s")
    table.add_section()
    peak = config.cluster.hardware.peak or 0.0
    table.add_row("tokens/s/device", f"{speed.tokens_per_second:,.0f}")
    table.add_row("mfu, mfu_causal", f"{speed.mfu:.1%}, {speed.mfu_causal:.1%}")
    table.add_row("model TFLOP/s/device", f"{speed.mfu * peak:.0f}")
    return table


def _notes(estimate: Estimate, config: TrainConfig) -> Iterator[str]:
    speed = estimate.speed
    if estimate.passes > 1 and estimate.flows:
        yield (
            f"each of the {estimate.passes} passes of an update exchanges parameters or gradients; "
            "a larger data.micro_batch makes fewer passes"
        )
    if speed and speed.waiting > speed.step / 5:
        yield (
            f"{speed.waiting / speed.step:.0%} of the time goes by waiting for the network; larger "
            "micro-batches or engine.reshard_after_forward=false need more memory and less of it"
        )
    if config.engine.compile:
        yield "compiled blocks are estimated as if they were not, and will need less"


def _rates(config: TrainConfig) -> str:
    hardware = config.cluster.hardware
    known = (
        ("matmul", hardware.matmul, "TFLOP/s"),
        ("attention", hardware.attention, "TFLOP/s"),
        ("memory", hardware.memory_bandwidth, "GB/s"),
        ("inside a node", hardware.inside_node, "GB/s"),
        ("between nodes", hardware.between_nodes, "GB/s for each device"),
    )
    return "rates: " + ", ".join(f"{n} {rate:g} {unit}" for n, rate, unit in known if rate)


def _list(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(f"\n{escape(title)}:", highlight=False)
    for line in lines:
        console.print(f"  - {escape(line)}", highlight=False, soft_wrap=True)
