"""The command `preflight`: its options, and whether the ranks are those that it is about."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.preflight.host import node_name
from launch.preflight.limits import hung
from launch.ranks import adopt
from llm_pretrain.config.arguments import compose_only, option, split_arguments
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose
from llm_pretrain.errors import EXIT_FAILED, UserError
from llm_pretrain.train.start import stays_here

_FLAGS = ("--json", "--out", "--seconds", "--wait")
_SECONDS = range(5, 3601)


def preflight(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain preflight ARGUMENTS`; the exit code. Raises UserError for bad input.

    Ends the process itself when a check hangs in a system call or a collective, or when the time
    is over.
    """
    began = time.monotonic()
    rest, out = option(arguments, "--out")
    rest, text = option(rest, "--seconds")
    overrides, config_dir, flags = split_arguments(rest)
    compose_only("preflight", overrides, flags, _FLAGS, "is about nodes, not about a run")
    config = compose(overrides, config_dir)
    folder, seconds = _folder(out), _number(text)
    given = {o.lstrip("+").partition("=")[0] for o in overrides}
    if "cluster.nodes" in given and "SLURM_JOB_ID" not in os.environ and not stays_here(config):
        from launch.preflight.submit import submit  # noqa: PLC0415  (nothing of Slurm elsewhere)

        own = [argument for argument in rest if argument != "--wait"]
        return submit(config, own, folder, seconds, wait="--wait" in flags)
    if "--wait" in flags:
        raise UserError("--wait: is for preflights that are submitted, with cluster.nodes=N")
    adopt()
    _check_ranks(config.cluster, given)
    # torch takes seconds to import; wrong arguments are told before.
    from launch.preflight.run import Options, run  # noqa: PLC0415

    options = Options(json="--json" in flags, out=folder, seconds=seconds)
    with _deadline(began + options.seconds):
        code = run(config, options, began)
    if hung():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _deadline(until: float) -> Iterator[None]:
    """End the process at this time of time.monotonic(), wherever it waits.

    For a rank 0 that stops while it keeps torch's store: no time limit of the store's counts then.
    """

    def give_up() -> None:
        rank = os.environ.get("RANK", "0")
        print(f"error: rank {rank} on {node_name()}: rank 0 did not answer", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    timer = threading.Timer(until - time.monotonic(), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _number(text: str | None) -> float:
    if text is None:
        return 60.0
    if not text.isdigit() or int(text) not in _SECONDS:
        raise UserError(f"--seconds: '{text}'; use a whole number from 5 to 3600")
    return float(text)


def _folder(text: str | None) -> Path | None:
    if text is None:
        return None
    folder = Path(text)
    if not text or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out: '{text}' is no folder")
    return folder


def _check_ranks(cluster: ClusterConfig, given: set[str]) -> None:
    """Raise UserError when other ranks were started than the overrides and the profile name.

    A process alone may use any profile, for its numbers; cluster.nodes counts only when given.
    """
    size, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    asked = cluster.nodes * cluster.devices_per_node
    if "cluster.nodes" in given and size != asked:
        raise UserError(
            f"cluster.nodes: {cluster.nodes} x {cluster.devices_per_node} devices asked for, but "
            f"this is one of {size} ranks; start one for each device, by srun or torchrun"
        )
    chosen = cluster.name != "local" or "cluster.devices_per_node" in given
    if size > 1 and chosen and here != cluster.devices_per_node:
        raise UserError(
            f"cluster.devices_per_node: {cluster.devices_per_node}, but {here} ranks were started "
            "on this node; start one for each device"
        )
