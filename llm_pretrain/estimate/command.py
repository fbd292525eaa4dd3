"""The command `estimate`: what a run needs and how fast it may be, before it starts."""

import dataclasses
import json
from collections.abc import Sequence

from llm_pretrain.config.arguments import compose_only, split_arguments
from llm_pretrain.config.compose import compose
from llm_pretrain.errors import EXIT_OK
from llm_pretrain.estimate.ranks import ranks_of
from llm_pretrain.terminal import console, write

EXIT_DOES_NOT_FIT = 3
"""The run could start, but not in the memory of the cluster's profile."""


def estimate(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain estimate ARGUMENTS`; the exit code. Raises UserError for bad input."""
    overrides, config_dir, flags = split_arguments(arguments)
    about = "plans runs from their config, not existing ones"
    compose_only("estimate", overrides, flags, ["--json"], about)
    # An experiment is a run as `train` would start it; the defaults of a plan are not its own.
    described = any(override.startswith("experiment=") for override in overrides)
    config = compose(overrides, config_dir, name="train" if described else "estimate")
    # torch takes seconds to import; what cannot work is told before.
    ranks_of(config)
    from llm_pretrain.estimate.plan import estimate as plan  # noqa: PLC0415
    from llm_pretrain.estimate.render import show, verdict  # noqa: PLC0415

    found = plan(config)
    if flags:
        data = dataclasses.asdict(found)
        for mode, memory in found.memory.items():
            data["memory"][mode] |= {"device": memory.device, "host": memory.host}
        text = json.dumps({**data, "verdict": verdict(found, config)}, indent=2) + "\n"
    else:
        screen = console()
        with screen.capture() as captured:
            show(found, config, screen)
        text = captured.get()
    write(text)
    return EXIT_DOES_NOT_FIT if found.shortages else EXIT_OK
