"""DeepSpeed's ZeRO in closed form; what a rank computes comes from a trace of the plain model."""

from dataclasses import dataclass, replace
from math import ceil

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.layout import Layout
from llm_pretrain.engine.zero_config import BUCKET
from llm_pretrain.estimate.memory import CHECKPOINT_BYTES, Memory, peak_of
from llm_pretrain.estimate.speed import PARTS, Speed, compute_seconds, speed_from
from llm_pretrain.estimate.trace import CATEGORIES, Bytes, Trace
from llm_pretrain.estimate.traffic import Flow, Network, Purpose, link_of

_BUCKET_BYTES = 4 * BUCKET


@dataclass(frozen=True)
class Sizes:
    """Bytes of float32 parameters."""

    whole: int
    part: int
    """Of one rank's part."""
    live: int
    """Gathered at a time, at most: two blocks, the next one and the embeddings."""


def sizes_of(trace: Trace, config: TrainConfig, ranks: int) -> Sizes:
    """Sizes of the model that was traced with fewer blocks."""
    whole = trace.rest + trace.block * config.model.layers
    return Sizes(whole, ceil(whole / ranks), 3 * trace.block + trace.rest)


def zero_memory(trace: Trace, config: TrainConfig, layout: Layout, passes: int) -> Memory:
    """Memory of a rank."""
    engine, sizes = config.engine, sizes_of(trace, config, layout.size)
    partitioned = engine.zero_stage == 3
    cut = ("parameters", "gradients", "moments", *(("gathered",) if partitioned else ()))
    held, when = peak_of(trace, config.model.layers, passes, dict.fromkeys(CATEGORIES, 0), cut)
    state: Bytes = {
        # Beside the parameters of the model, each rank has a second copy of its part to update.
        "parameters": sizes.part + (sizes.part if partitioned else sizes.whole),
        "gradients": sizes.whole if engine.zero_stage == 1 else sizes.part,
        "moments": 2 * sizes.part,
    }
    offloaded: Bytes = {}
    if engine.offload != "none":
        kept = sizes.whole if not partitioned else sizes.part
        gone = sizes.part if engine.offload == "optimizer" else sizes.part + kept
        offloaded = {"parameters": gone, "gradients": sizes.part, "moments": 2 * sizes.part}
        state = {
            "parameters": state["parameters"] - gone,
            "gradients": sizes.whole if engine.zero_stage == 1 else 0,
            "moments": 0,
        }
    buffers = _BUCKET_BYTES + (sizes.live if partitioned else 0)
    held = {**held, **state, "gathered": held["gathered"] + buffers}
    return Memory(held, when, offloaded, CHECKPOINT_BYTES // 4 * sizes.part)


def zero_flows(trace: Trace, config: TrainConfig, layout: Layout, passes: int) -> list[Flow]:
    """The exchanges of one update, all of them in float32 and among all ranks."""
    if layout.size == 1:
        return []
    stage, size = config.engine.zero_stage, sizes_of(trace, config, layout.size).whole
    ring = size * (layout.size - 1) / layout.size
    link, neighbours = link_of(
        tuple(range(layout.size)), layout.size, config.cluster.devices_per_node
    )
    # Our configuration lets DeepSpeed overlap at stage 3 only.
    base = Purpose("", "float32", layout.size, link, neighbours, hidden=stage == 3)

    def flow(name: str, count: int, sent: float) -> Flow:
        return Flow(replace(base, name=name), count, count * sent)

    if stage == 3:
        return [
            flow("ZeRO all-gather, forward", passes, ring),
            flow("ZeRO all-gather, backward", passes, ring),
            flow("ZeRO reduce-scatter", passes, ring),
        ]
    return [
        flow("ZeRO all-reduce of gradients", passes if stage == 2 else 1, 2 * ring),
        flow("ZeRO all-gather of updated parameters", 1, ring),
    ]


def zero_speed(
    trace: Trace, config: TrainConfig, network: Network, layout: Layout, passes: int
) -> Speed:
    """Seconds of an update; what stage 3 exchanges hides behind a half, forward or backward."""
    sums = dict.fromkeys(PARTS, 0.0)
    busy, exchanges = {"forward": 0.0, "backward": 0.0}, {"forward": 0.0, "backward": 0.0}
    for stretch in trace.order(config.model.layers, passes):
        parts = compute_seconds(stretch.segment.work, config.cluster.hardware)
        half = "backward" if stretch.segment.name.startswith("backward") else "forward"
        for name, seconds in parts.items():
            sums[name] += seconds
            busy[half] += seconds
    for flow in zero_flows(trace, config, layout, passes):
        seconds = network.seconds(flow.purpose, flow.bytes) or 0.0
        sums["network"] += seconds
        if flow.purpose.hidden:
            exchanges["forward" if "forward" in flow.purpose.name else "backward"] += seconds
        else:
            sums["exposed"] += seconds
    sums["waiting"] = sum(max(0.0, exchanges[h] - busy[h]) for h in busy)
    step = sum(busy.values()) + sums["exposed"] + sums["waiting"]
    return speed_from(config, step, sums, layout.size)
