"""The command `estimate`: what a run needs and how fast it may be, before it starts."""

import dataclasses
import json
from collections.abc import Sequence

from llm_pretrain.config.compose import compose
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.train.command import split_arguments

EXIT_DOES_NOT_FIT = 3
"""The run could start, but not in the memory of the cluster's profile."""


def estimate(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain estimate ARGUMENTS`; the exit code. Raises UserError for bad input."""
    overrides, config_dir, flags = split_arguments(arguments)
    for flag in flags:
        if flag != "--json":
            raise UserError(f"{flag}: estimate knows --json and --config-dir only")
    config = compose(overrides, config_dir, name="estimate")
    # torch takes seconds to import; wrong keys are told before.
    from llm_pretrain.estimate.plan import estimate as plan  # noqa: PLC0415
    from llm_pretrain.estimate.render import show, verdict  # noqa: PLC0415

    found = plan(config)
    told = verdict(found, config)
    if flags:
        data = dataclasses.asdict(found)
        for mode, memory in found.memory.items():
            data["memory"][mode] |= {"device": memory.device, "host": memory.host}
        print(json.dumps({**data, "verdict": told}, indent=2))
    else:
        show(found, config)
    return EXIT_DOES_NOT_FIT if told.startswith("does not fit") else EXIT_OK
