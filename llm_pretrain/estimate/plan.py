"""Everything that is said of a run before it starts, as data."""

from dataclasses import dataclass, replace

from llm_pretrain.config.cluster import HardwareConfig
from llm_pretrain.config.engine import Recompute
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.memory import GIB, Memory, memory_of, saved
from llm_pretrain.estimate.ranks import ranks_of
from llm_pretrain.estimate.rates import unknown as missing
from llm_pretrain.estimate.speed import Speed, speed_of
from llm_pretrain.estimate.trace import Trace, trace
from llm_pretrain.estimate.traffic import Flow, Network, flows_of
from llm_pretrain.estimate.zero import zero_flows, zero_memory, zero_speed
from llm_pretrain.model.flops import parameter_count

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "block")


@dataclass(frozen=True)
class Shortage:
    """Memory of which a run needs more than there is."""

    name: str
    need: int
    """Bytes."""
    limit: float
    """GiB that there are."""


@dataclass(frozen=True)
class Estimate:
    """What a run will need and how fast it may be."""

    layout: Layout
    passes: int
    """Forward and backward passes of a rank for one update."""
    parameters: int
    """Of the whole model."""
    memory: dict[Recompute, Memory]
    """With each value of engine.recompute that the engine takes."""
    flows: list[Flow]
    shortages: list[Shortage]
    """What does not fit; None of what the profile does not know."""
    speed: Speed | None
    unknown: list[str]
    """Why there is no speed."""
    checkpoint: int
    """Bytes of one checkpoint on disk, without a few kilobytes beside the tensors."""
    saving: float | None
    """Seconds to write one, if the profile knows the file system's rates."""


def estimate(config: TrainConfig) -> Estimate:
    """Plan the run. Raises UserError when it could not start."""
    layout, count = ranks_of(config)
    # As `check_engine` has it.
    zero3 = config.engine.name == "deepspeed" and config.engine.zero_stage == 3
    modes = [m for m in RECOMPUTE if not (zero3 and m == "selective")]
    traces = {mode: _trace(config, layout, count, mode) for mode in modes}
    of = zero_memory if config.engine.name == "deepspeed" else memory_of
    memory = {mode: of(traced, config, layout, count) for mode, traced in traces.items()}
    chosen = traces[config.engine.recompute]
    flows, speed, unknown = _traffic(chosen, config, layout, count)
    parameters = parameter_count(config.model)
    # Of all ranks together; parts of one model have their bytes in the same proportion.
    size = 4 * parameters * saved(chosen, config) // chosen.parameters(config.model.layers)
    return Estimate(
        layout=layout,
        passes=count,
        parameters=parameters,
        memory=memory,
        shortages=_shortages(memory[config.engine.recompute], config.cluster.hardware),
        flows=flows,
        speed=speed,
        unknown=unknown,
        checkpoint=size,
        saving=_saving(size, memory[config.engine.recompute].staging, config.cluster.hardware),
    )


def estimated_speed(config: TrainConfig) -> Speed | None:
    """Only the speed, in a fraction of the time; None where it is not known.

    Raises UserError when the run could not start.
    """
    layout, count = ranks_of(config)
    traced = _trace(config, layout, count, config.engine.recompute)
    return _traffic(traced, config, layout, count)[1]


def _traffic(
    chosen: Trace, config: TrainConfig, layout: Layout, count: int
) -> tuple[list[Flow], Speed | None, list[str]]:
    """What a rank sends, how fast the run may be, and why that is not known."""
    network = Network(layout, config.cluster)
    zero = config.engine.name == "deepspeed"
    if zero:
        flows = zero_flows(chosen, config, layout, count)
    else:
        flows = flows_of(chosen, config, network, count)
    unknown = missing(config, {flow.purpose.link for flow in flows})
    if unknown:
        return flows, None, unknown
    if zero:
        return flows, zero_speed(chosen, config, network, layout, count), []
    return flows, speed_of(chosen, config, network, count, layout.size), []


def _saving(size: int, part: int, hardware: HardwareConfig) -> float | None:
    """Seconds to write a checkpoint; few ranks do not get all that the file system can take."""
    if hardware.file_system is None or hardware.file_system_per_rank is None:
        return None
    return max(size / hardware.file_system, part / hardware.file_system_per_rank) / 1e9


def _shortages(memory: Memory, hardware: HardwareConfig) -> list[Shortage]:
    limits = (
        ("device", memory.device, hardware.memory),
        ("host memory", memory.host, hardware.host_memory),
    )
    return [
        Shortage(name, need, limit)
        for name, need, limit in limits
        if limit is not None and need > limit * GIB
    ]


def _trace(config: TrainConfig, layout: Layout, count: int, mode: Recompute) -> Trace:
    """A trace with some value of engine.recompute; shorter where it is not the one asked for."""
    # ZeRO's ranks compute what a single process does.
    engine = config.engine
    grouped = engine.name == "fsdp" and (layout.size > 1 or engine.offload != "none")
    if mode != config.engine.recompute:
        config = replace(config, engine=replace(config.engine, recompute=mode))
        count = min(count, 2)
    return trace(config, layout, count, grouped=grouped)
