"""Bytes that a rank needs, on its device and on its host."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llm_pretrain.config.average import in_steps
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.optimizer_rules import SCHEDULE_FREE
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.trace import CATEGORIES, Bytes, Trace
from llm_pretrain.schedule.schedule import clock_of

GIB = 2**30
RESERVE = 4 * GIB
"""Assumed for what no trace sees: the CUDA context, NCCL's and cuBLAS's buffers, what kernels take
while they run, fragmentation."""
HOST_RESERVE = 4 * GIB
"""Assumed for a process beside state and checkpoints: Python and torch, which are 0.5 GiB without a
GPU, CUDA's libraries and context, NCCL's buffers, batches."""


@dataclass(frozen=True)
class Memory:
    """What rank 0, which holds the largest parts, has at the worst moment of an update."""

    held: Bytes
    """Bytes on the device by category."""
    when: str
    """The stretch of the update in which that is."""
    offloaded: Bytes
    """Bytes in host memory by category."""
    staging: int
    """Bytes in host memory for the copy that a checkpoint is written from."""

    @property
    def device(self) -> int:
        """Bytes on the device, with what is assumed for the rest."""
        return sum(self.held.values()) + RESERVE

    @property
    def host(self) -> int:
        """Bytes in host memory, with what is assumed for the process itself."""
        return sum(self.offloaded.values()) + self.staging + HOST_RESERVE


def memory_of(trace: Trace, config: TrainConfig, layout: Layout, passes: int) -> Memory:
    """Memory of a rank that FSDP trains, or of a single process."""
    layers = config.model.layers
    parameters, moments = trace.parameters(layers), trace.moments(layers)
    averages = averaged(trace, config)
    state = {**dict.fromkeys(CATEGORIES, 0), "parameters": parameters, "moments": moments}
    state["averages"] = averages
    everything = config.engine.offload == "all"
    hosted = ("parameters", "gradients", "moments", "averages") if everything else ()
    held, when = peak_of(trace, layers, passes, state, hosted=(*hosted, "offloaded"))
    offloaded: Bytes = {}
    if hosted:
        offloaded = {"parameters": parameters, "gradients": parameters, "moments": moments}
        offloaded |= {"averages": averages} if averages else {}
    if config.engine.offload_activations:
        # Of every block but the last one.
        offloaded["activations"] = (layers - 1) * trace.waiting
    copied = saved(trace, config)
    # Equal copies are shared out among the ranks that hold them.
    return Memory(held, when, offloaded, -(-copied // layout.replicate))


def saved(trace: Trace, config: TrainConfig) -> int:
    """Bytes of a checkpoint that are this rank's."""
    layers = config.model.layers
    # A rule that averages saves the average beside the point where it trains.
    copies = 2 if config.optimizer.name in SCHEDULE_FREE else 1
    rest = trace.moments(layers) + averaged(trace, config)
    return rest + copies * trace.parameters(layers)


def averaged(trace: Trace, config: TrainConfig) -> int:
    """Bytes of the averages of this rank's parameters: each is a copy of them in float32."""
    kept = in_steps(config.average, clock_of(config)).tensors
    return kept * trace.parameters(config.model.layers)


def peak_of(
    trace: Trace,
    layers: int,
    passes: int,
    state: Bytes,
    *,
    hosted: Collection[str],
    gradients: Mapping[str, int] | None = None,
) -> tuple[Bytes, str]:
    """The worst moment of an update that begins with `state`, and the name of its stretch.

    Categories in `hosted` do not count, since they are elsewhere. `gradients`: bytes beside what
    was traced, by the name of the stretch that has them.
    """
    now, extra = dict(state), gradients or {}
    best, worst, when = -1, now, ""
    # More passes than were traced repeat what one of these does.
    for stretch in trace.order(layers, min(passes, trace.passes)):
        change, peak = stretch.memory(max(1, layers - 2 * trace.edge), hosted)
        moment = {c: 0 if c in hosted else now[c] + peak[c] for c in CATEGORIES}
        moment["gradients"] += extra.get(stretch.segment.name, 0)
        if sum(moment.values()) > best:
            best, worst, when = sum(moment.values()), moment, stretch.segment.name
        now = {c: now[c] + change[c] for c in CATEGORIES}
    return worst, when
