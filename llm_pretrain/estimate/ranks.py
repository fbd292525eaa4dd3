"""Whether the devices of a cluster profile can be the ranks of a run. Imports no torch."""

from llm_pretrain.config.layout import Layout, passes
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError


def ranks_of(config: TrainConfig) -> tuple[Layout, int]:
    """The layout of the cluster's devices, and the passes of each for one update.

    Raises UserError when they cannot be, or when matrices would be split over the network.
    """
    cluster, engine = config.cluster, config.engine
    if cluster.devices_per_node % engine.tensor:
        raise UserError(
            f"engine.tensor: {engine.tensor} ranks that split matrices do not share a node of "
            f"cluster.devices_per_node={cluster.devices_per_node}; use a divisor of it"
        )
    size = cluster.nodes * cluster.devices_per_node
    try:
        layout = Layout.of(engine, size)
        return layout, passes(config.data, layout)
    except UserError as error:
        raise UserError(
            f"{error} (cluster.nodes={cluster.nodes} x cluster.devices_per_node="
            f"{cluster.devices_per_node} are {size} ranks)"
        ) from None
