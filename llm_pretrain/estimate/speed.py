"""How long an update takes, from the work of the trace and the rates of a cluster profile."""

from collections import Counter
from dataclasses import dataclass

from llm_pretrain.config.cluster import HardwareConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.ledger import Work
from llm_pretrain.estimate.trace import Stretch, Trace
from llm_pretrain.estimate.traffic import Network
from llm_pretrain.model.flops import flops_per_token

PARTS = ("products", "attention", "other", "exposed", "waiting", "network")
"""Fields of Speed that are sums of seconds over the stretches of an update."""

ASSUMPTIONS = (
    "blocks run one after the other at the profile's rates; kernels wait for nothing else",
    "attention has one rate for every head size and length, as it was measured for the profile; "
    "smaller heads and shorter sequences are slower, and so are small matrices",
    "FSDP's exchanges of a block hide behind the computation of another, tensor and context "
    "parallel ones behind nothing",
    "bandwidths do not fall with the number of nodes, and every rank is as fast as the others",
    "reading data, logging, evaluation and checkpoints take no time",
)


@dataclass(frozen=True)
class Speed:
    """Seconds of one update and what they add up from."""

    step: float
    products: float
    """In matrix products."""
    attention: float
    """In attention."""
    other: float
    """In everything else, which the device's memory bounds."""
    exposed: float
    """In exchanges that computation waits for by design."""
    waiting: float
    """In FSDP's exchanges beyond the computation that hides them."""
    network: float
    """In all exchanges, hidden or not."""
    tokens_per_second: float
    """Of one device."""
    mfu: float
    """Of the datasheet's peak; attention counted as a full square, like `mfu` of metrics.jsonl."""
    mfu_causal: float
    """Of the datasheet's peak; half the square, like `mfu_causal`."""


def speed_of(trace: Trace, config: TrainConfig, network: Network, passes: int, ranks: int) -> Speed:
    """Seconds of an update; all rates that it needs are known."""
    hardware = config.cluster.hardware
    sums = dict.fromkeys(PARTS, 0.0)
    step = 0.0
    times = Counter(id(s) for s in trace.order(config.model.layers, passes))
    for stretch in trace.stretches:
        parts, seconds = _stretch(stretch, trace, network, hardware)
        count = times[id(stretch)]
        step += count * seconds
        for name, value in parts.items():
            sums[name] += count * value
    return speed_from(config, step, sums, ranks)


def speed_from(config: TrainConfig, step: float, sums: dict[str, float], ranks: int) -> Speed:
    """Rates of an update that takes `step` seconds. `sums`: the fields of Speed that add up."""
    data, hardware = config.data, config.cluster.hardware
    rate = data.global_batch * data.sequence_length / step / ranks
    assert hardware.peak is not None
    full, causal = (
        rate * flops_per_token(config.model, data.sequence_length, causal=c) for c in (False, True)
    )
    peak = hardware.peak * 1e12
    parts = {name: sums.get(name, 0.0) for name in PARTS}
    return Speed(
        step=step, tokens_per_second=rate, mfu=full / peak, mfu_causal=causal / peak, **parts
    )


def compute_seconds(work: Work, hardware: HardwareConfig) -> dict[str, float]:
    """Seconds of a segment's computation by part."""
    assert hardware.matmul and hardware.attention and hardware.memory_bandwidth
    return {
        "products": work.products / (hardware.matmul * 1e12),
        "attention": work.attention / (hardware.attention * 1e12),
        "other": work.traffic / (hardware.memory_bandwidth * 1e9),
    }


def _stretch(
    stretch: Stretch, trace: Trace, network: Network, hardware: HardwareConfig
) -> tuple[dict[str, float], float]:
    """Seconds of one stretch by part, and in all."""
    parts = compute_seconds(stretch.segment.work, hardware)
    busy = sum(parts.values())
    hidden = exposed = 0.0
    for collective in stretch.segment.collectives:
        purpose = network.purpose(stretch.segment, collective)
        seconds = network.seconds(purpose, network.sent(collective)) or 0.0
        if purpose.hidden:
            hidden += seconds
        else:
            exposed += seconds
    busy += exposed
    # Where a pass begins or turns there is nothing to hide behind.
    block = stretch.segment.block
    first = 0 if stretch.segment.name == "forward" else trace.blocks - 1
    waiting = hidden if block in (None, first) else max(0.0, hidden - busy)
    parts |= {"exposed": exposed, "waiting": waiting, "network": exposed + hidden}
    return parts, busy + waiting
