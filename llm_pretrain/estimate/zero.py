"""DeepSpeed's ZeRO in closed form; what a rank computes comes from a trace of the plain model."""

from collections import defaultdict
from dataclasses import dataclass, replace
from math import ceil

from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine import zero_config
from llm_pretrain.estimate.memory import Memory, averaged, peak_of, saved
from llm_pretrain.estimate.speed import PARTS, Speed, compute_seconds, speed_from
from llm_pretrain.estimate.trace import CATEGORIES, Bytes, Trace
from llm_pretrain.estimate.traffic import Flow, Network, Purpose, link_of


@dataclass(frozen=True)
class Sizes:
    """Bytes of float32 parameters."""

    whole: int
    part: int
    """Of one rank's part."""
    live: int
    """Gathered at a time, at most: two blocks, the next one and the embeddings."""
    largest: int
    """Of the largest tensor."""
    moments: int
    """What the update rule keeps of one rank's part."""


def sizes_of(trace: Trace, config: TrainConfig, ranks: int) -> Sizes:
    """Sizes of the model that was traced with fewer blocks."""
    whole = trace.rest + trace.block * config.model.layers
    model = config.model
    largest = 4 * model.width * max(model.vocab_size, model.ffn, model.heads * model.head_dim)
    return Sizes(
        whole=whole,
        part=ceil(whole / ranks),
        live=3 * trace.block + trace.rest,
        largest=largest,
        moments=ceil(trace.moments(model.layers) / ranks),
    )


def zero_memory(trace: Trace, config: TrainConfig, layout: Layout, passes: int) -> Memory:
    """Memory of a rank."""
    sizes, partitioned = sizes_of(trace, config, layout.size), config.engine.zero_stage == 3
    device, host = _state(config, sizes, passes)
    cut = ("parameters", "gradients", "moments", *(("gathered",) if partitioned else ()))
    nothing = dict.fromkeys(CATEGORIES, 0)
    extra = _passing_gradients(config, sizes, passes, piecewise=trace.piecewise)
    layers = config.model.layers
    hosted = (*cut, "offloaded")
    held, when = peak_of(trace, layers, passes, nothing, hosted=hosted, gradients=extra)
    if config.engine.offload_activations:
        host["activations"] = (layers - 1) * trace.waiting
    for category, size in device.items():
        held[category] += size
    if averages := ceil(averaged(trace, config) / layout.size):
        # They are of the copy that a rank updates, and where it is.
        (held if config.engine.offload == "none" else host)["averages"] = averages
    return Memory(held, when, host, ceil(saved(trace, config) / layout.size))


def _state(config: TrainConfig, sizes: Sizes, passes: int) -> tuple[Bytes, Bytes]:
    """What is there all the time, on the device and on the host, as DeepSpeed 0.19 keeps it."""
    engine, part = config.engine, sizes.part
    kept = part if engine.zero_stage == 3 else sizes.whole
    buffers = 4 * zero_config.BUCKET + (sizes.live if engine.zero_stage == 3 else 0)
    device = {"parameters": kept, "gradients": part, "moments": 0, "gathered": buffers}
    if engine.zero_stage == 1:
        device["gradients"] = sizes.whole
    # Beside the parameters of the model, each rank has a second copy of its part to update.
    update = {"parameters": part, "gradients": 0, "moments": sizes.moments}
    if engine.offload == "none":
        return {c: size + update.get(c, 0) for c, size in device.items()}, {}
    update["gradients"] = part
    if engine.zero_stage < 3:
        update["parameters"] += part  # on their way back
        if engine.zero_stage == 2 and passes > 1:
            update["gradients"] += part  # of the passes before
        # A gradient on its way out is in a buffer of the largest one's size on either side.
        update["gradients"] += sizes.largest
        device["gathered"] += sizes.largest
    else:
        update["gradients"] += part  # as the passes add them up
    if engine.zero_stage > 1:
        device["gradients"] = 0
    if engine.offload == "all":
        update["parameters"] += device.pop("parameters")
    return device, update


def _passing_gradients(
    config: TrainConfig, sizes: Sizes, passes: int, *, piecewise: bool
) -> dict[str, int]:
    """Bytes of gradients that only some stretches of an update have, by their name."""
    stage, part = config.engine.zero_stage, sizes.part
    if config.engine.offload != "none":
        return {}
    if stage == 3:
        # An update copies as much as `sub_group_size` at a time, or all.
        most = 2 * 4 * zero_config.BUCKET if piecewise else part
        return {"update": min(part, most)}
    if stage == 1 or passes == 1:
        return {"update": part}
    # A pass collects this rank's part before it is added to that of the passes before.
    return {"update": part, "backward": part, "backward embedding": part}


def zero_flows(trace: Trace, config: TrainConfig, layout: Layout, passes: int) -> list[Flow]:
    """The exchanges of one update, all of them among all ranks, and in float32 but for Muon's."""
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
        flows = [
            flow("ZeRO all-gather, forward", passes, ring),
            flow("ZeRO all-gather, backward", passes, ring),
            flow("ZeRO reduce-scatter", passes, ring),
        ]
    else:
        flows = [
            flow("ZeRO all-reduce of gradients", passes if stage == 2 else 1, 2 * ring),
            flow("ZeRO all-gather of updated parameters", 1, ring),
        ]
    if config.optimizer.name == "muon":
        purpose = replace(
            base, name="Muon's all-reduce of directions", dtype="bfloat16", hidden=False
        )
        blocks = trace.block * config.model.layers / size
        # Seven matrices a block, in half as many bytes, which an all-reduce sends twice.
        flows.append(Flow(purpose, 7 * config.model.layers, blocks * ring))
    return flows


def zero_speed(
    trace: Trace, config: TrainConfig, network: Network, layout: Layout, passes: int
) -> Speed:
    """Seconds of an update; what stage 3 exchanges hides behind a half, forward or backward."""
    hardware = config.cluster.hardware
    sums = dict.fromkeys(PARTS, 0.0)
    busy = dict.fromkeys(("forward", "backward", "update"), 0.0)
    exchanges: defaultdict[str, float] = defaultdict(float)
    for stretch in trace.order(config.model.layers, passes):
        when = _phase(stretch.segment.name)
        for part, seconds in compute_seconds(stretch.segment.work, hardware).items():
            # The trace is of a process that is alone; here each rank updates its part, but makes
            # all of Muon's products.
            divided = when == "update" and part != "products"
            share = seconds / layout.size if divided else seconds
            sums[part] += share
            busy[when] += share
    for flow in zero_flows(trace, config, layout, passes):
        seconds = network.seconds(flow.purpose, flow.bytes) or 0.0
        sums["network"] += seconds
        if flow.purpose.hidden:
            when = "forward" if "forward" in flow.purpose.name else "backward"
            exchanges[when] += seconds
        else:
            sums["exposed"] += seconds
    sums["waiting"] = sum(max(0.0, exchanges[when] - busy[when]) for when in exchanges)
    step = sum(busy.values()) + sums["exposed"] + sums["waiting"]
    return speed_from(config, step, sums, layout.size)


def _phase(stretch: str) -> str:
    """The part of an update that a stretch belongs to."""
    if stretch == "update":
        return stretch
    return "backward" if stretch.startswith("backward") else "forward"
