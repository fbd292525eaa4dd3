"""Whether a cluster's profile knows what a speed takes. Imports no torch."""

from collections.abc import Collection

from llm_pretrain.config.schema import TrainConfig


def missing_rates(config: TrainConfig, links: Collection[str]) -> list[str]:
    """Names of the profile's numbers that a speed needs and that are not known."""
    needed = ["matmul", "attention", "memory_bandwidth", "peak"]
    needed += ["inside_node"] if "inside nodes" in links else []
    needed += ["between_nodes"] if "between nodes" in links else []
    hardware = config.cluster.hardware
    return [f"cluster.hardware.{name}" for name in needed if getattr(hardware, name) is None]


def unknown(config: TrainConfig, links: Collection[str] = ()) -> list[str]:
    """Reasons why no speed is estimated; `links`: that the run exchanges something over."""
    reasons = []
    if config.precision.name != "bf16":
        reasons.append(f"profiles have no rates for precision={config.precision.name}")
    if config.engine.offload != "none":
        reasons.append("profiles have no rate of updates in host memory (engine.offload)")
    if config.engine.offload_activations:
        reasons.append("profiles have no rate to host memory (engine.offload_activations)")
    missing = missing_rates(config, links)
    return [*reasons, *(f"{name} is not known" for name in missing)]
