"""The estimate for a person: what a device holds, what a rank sends, how long an update takes."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.fake import keeps_scores
from llm_pretrain.estimate.memory import GIB, HOST_RESERVE, RESERVE
from llm_pretrain.estimate.plan import Estimate
from llm_pretrain.estimate.speed import ASSUMPTIONS, Speed
from llm_pretrain.estimate.traffic import Network

_LEAST_GIB = 0.005
"""What would be shown as 0.00 is not."""
_LEAST_SECONDS = 0.0005
_ROWS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "moments": "moments",
    "averages": "averages of the parameters",
    "accumulated": "gradients not reduced before the last pass",
    "gathered": "parameters of whole blocks, gradients on their way",
    "activations": "activations",
    "working": "working memory of a block",
    "loss": "logits and loss",
}


def show(estimate: Estimate, config: TrainConfig, console: Console) -> None:
    """Print all of it."""
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
    table.add_column("", overflow="fold")
    for mode in estimate.memory:
        mark = " (asked for)" if mode == asked else ""
        table.add_column(f"recompute={mode}{mark}", justify="right", overflow="fold")
    for category, name in _ROWS.items():
        sizes = [estimate.memory[mode].held[category] / GIB for mode in estimate.memory]
        if max(sizes) >= _LEAST_GIB:
            table.add_row(name, *(f"{size:.2f}" for size in sizes))
    table.add_row(
        "CUDA, NCCL, kernels, fragmentation (assumed)",
        *[f"{RESERVE / GIB:.2f}"] * len(estimate.memory),
    )
    limit = config.cluster.hardware.memory
    of = f" of {limit:g}" if limit else ""
    totals = [estimate.memory[mode].device / GIB for mode in estimate.memory]
    table.add_section()
    table.add_row("total", *(f"{total:.2f}{of}" for total in totals))
    table.add_row("the worst moment", *(estimate.memory[mode].when for mode in estimate.memory))
    return table


def _storage_lines(estimate: Estimate, config: TrainConfig) -> Iterator[str]:
    yield verdict(estimate, config) or "fits: unknown, cluster.hardware.memory is not known"
    memory = estimate.memory[config.engine.recompute]
    limit = config.cluster.hardware.host_memory
    state = sum(memory.offloaded.values())
    yield (
        f"host memory for each device: {_gib(memory.host)} GiB"
        f"{f' of {limit:g}' if limit else ''}: {_gib(memory.staging)} to save checkpoints from, "
        f"{f'{_gib(state)} offloaded, ' if state else ''}"
        f"{_gib(HOST_RESERVE)} assumed for the process itself"
    )
    size, seconds = estimate.checkpoint, estimate.saving
    saving = ""
    if seconds is not None:
        saving = f", {f'about {seconds:.0f}' if seconds >= 1 else 'under 1'} s to write"
    on_disk = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    yield f"checkpoint: {on_disk} on disk{saving}, while training goes on"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= _LEAST_GIB * GIB else "under 0.01"


def _traffic_table(estimate: Estimate, config: TrainConfig) -> Table:
    network = Network(estimate.layout, config.cluster)
    table = Table(title="Traffic of a rank in one update", title_justify="left")
    for name in ("exchange", "type", "link"):
        table.add_column(name, overflow="fold")
    for name in ("ranks", "times", "GB", "seconds"):
        table.add_column(name, justify="right", overflow="fold")
    most = max(flow.bytes for flow in estimate.flows)
    for flow in estimate.flows:
        purpose = flow.purpose
        seconds = network.seconds(purpose, flow.bytes)
        if flow.bytes < most / 1000 and (seconds or 0.0) < _LEAST_SECONDS:
            continue  # such as the gradients' norm
        table.add_row(
            purpose.name,
            purpose.dtype,
            purpose.link,
            str(purpose.ranks),
            str(flow.count),
            _number(flow.bytes / 1e9),
            "unknown" if seconds is None else _number(seconds),
        )
    return table


def _number(value: float) -> str:
    """With three decimals, or as many as tell it from nothing."""
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def _speed_table(speed: Speed, config: TrainConfig) -> Table:
    table = Table(title="An update", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    rows = (
        ("matrix products, recomputed ones too", speed.products),
        ("attention", speed.attention),
        ("everything else, at the memory's rate", speed.other),
        ("exchanges that computation waits for", speed.exposed),
        ("FSDP's or ZeRO's exchanges that nothing hides", speed.waiting),
        ("total", speed.step),
    )
    for name, value in rows:
        if value >= speed.step / 1000:
            table.add_row(name, f"{_number(value)} s")
    table.add_section()
    peak = config.cluster.hardware.peak or 0.0
    table.add_row("tokens/s/device", f"{speed.tokens_per_second:,.0f}")
    table.add_row("mfu, mfu_causal", f"{speed.mfu:.1%}, {speed.mfu_causal:.1%}")
    table.add_row("model TFLOP/s/device", f"{speed.mfu * peak:.0f}")
    return table


def _notes(estimate: Estimate, config: TrainConfig) -> Iterator[str]:
    speed, engine = estimate.speed, config.engine
    repeated = _repeated(estimate, config)
    if repeated:
        yield (
            f"each of the {estimate.passes} passes of an update {repeated}; a larger "
            "data.micro_batch makes fewer passes"
        )
    # What tensor and context parallelism exchange is the same whatever is said here.
    idle = 0.0
    if speed:
        idle = speed.waiting + (speed.exposed if engine.name == "deepspeed" else 0.0)
    if speed and idle > speed.step / 5:
        remedies = ["larger micro-batches"] if repeated else []
        if engine.name == "fsdp" and estimate.layout.shard > 1 and engine.reshard_after_forward:
            remedies.append("engine.reshard_after_forward=false")
        yield (
            f"{idle / speed.step:.0%} of the time goes by waiting for the network"
            f"{'; ' if remedies else ''}{' or '.join(remedies)}"
            f"{' would shorten it and take more memory' if remedies else ''}"
        )
    if keeps_scores(config):
        yield _scores_note(estimate, config)
    if engine.offload != "none":
        yield (
            "torch takes pinned host memory in powers of two, so what is offloaded from a GPU may "
            "need up to twice the bytes"
        )
    if engine.compile:
        yield "compiled blocks are estimated as if they were not, and will need less"


def _repeated(estimate: Estimate, config: TrainConfig) -> str:
    """What every pass of an update exchanges that one pass would exchange once; empty: nothing."""
    engine = config.engine
    if estimate.passes == 1 or not estimate.flows:
        return ""
    if engine.name == "deepspeed":
        by_stage = {1: "", 2: "reduces gradients", 3: "gathers parameters and reduces gradients"}
        return by_stage[engine.zero_stage]
    if estimate.layout.shard * estimate.layout.context == 1:
        return ""
    return "gathers parameters" + (" and reduces gradients" * (engine.accumulate == "shards"))


def _scores_note(estimate: Estimate, config: TrainConfig) -> str:
    data, model = config.data, config.model
    rows = data.global_batch // estimate.layout.data_size // estimate.passes
    scores = 4 * rows * model.heads // estimate.layout.part_size * data.sequence_length**2
    return (
        "float32 with groups of query heads: a GPU has no fused attention for it (with torch up to "
        f"2.13), so all scores are kept, {scores / GIB:.2f} GiB in each block; use precision=bf16, "
        "model.kv_heads=model.heads or engine.recompute=block"
    )


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
