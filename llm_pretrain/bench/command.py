"""The command `bench`: how fast this machine trains a model, and where the time of a step goes."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.ranks import adopt
from llm_pretrain import atomic
from llm_pretrain.config.arguments import compose_only, option, split_arguments
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout, passes
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.terminal import write

if TYPE_CHECKING:
    from llm_pretrain.bench.result import Result

_OUT = Path("bench.json")


@dataclass(frozen=True)
class Options:
    """What a command line asks for beside the config."""

    out: Path
    """For the JSON."""
    steps: int | None
    """To time; None: as many as fit."""
    trace: Path | None
    """For the profiler's trace of one step."""


def bench(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain bench ARGUMENTS`; the exit code. Raises UserError for bad input."""
    adopt()
    rest, options = _options(arguments)
    config = _config(rest, int(os.environ.get("WORLD_SIZE", "1")))
    # The profiler's library announces each of its starts; it reads this when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    # torch takes seconds to import; what cannot work is told before.
    from llm_pretrain.bench.render import show  # noqa: PLC0415
    from llm_pretrain.estimate.plan import estimate  # noqa: PLC0415

    result = _measure(config, options)
    if not result.world.main:
        return EXIT_OK
    # After the ranks have parted, since an estimate makes a process group of its own.
    plan = estimate(_alone_on_a_node(result.config, result.world.size))
    held = sum(plan.memory[config.engine.recompute].held.values())
    atomic.write_text(
        options.out, json.dumps(result.to_dict(held, list(arguments)), indent=2) + "\n"
    )
    written = f"wrote {options.out}"
    written += f", {options.trace}" if options.trace else ""
    write(f"{show(result, held)}\n{written}\n")
    return EXIT_OK


def _measure(config: TrainConfig, options: Options) -> "Result":
    from llm_pretrain.bench.result import measure  # noqa: PLC0415
    from llm_pretrain.engine.choices import settle  # noqa: PLC0415
    from llm_pretrain.numa import bind_near  # noqa: PLC0415
    from llm_pretrain.world import join  # noqa: PLC0415

    with join(config.engine) as world, world.watched(), _progress(main=world.main) as say:
        bound = bind_near(world.device)
        if bound:
            say(bound)
        say("what to compute with")
        settled = settle(config, world)
        result = measure(settled, world, say, options.steps, options.trace)
        # torchrun ends the other ranks when the first one exits.
        world.gather(None)
        return result


def _options(arguments: Sequence[str]) -> tuple[list[str], Options]:
    """What is left of the arguments, and the options. Raises UserError before anything is done."""
    rest, out = option(arguments, "--out", "a file")
    rest, steps = option(rest, "--steps", "a number")
    rest, trace = option(rest, "--trace", "a file")
    for name, file in (("--out", out or _OUT), ("--trace", trace)):
        if file is not None and not Path(file).parent.is_dir():
            raise UserError(f"{name}: {Path(file).parent} is no folder; make it, or name another")
        if file is not None and Path(file).is_dir():
            raise UserError(f"{name}: {file} is a folder; name a file")
    if steps is not None and (not steps.isdecimal() or int(steps) < 1):
        raise UserError(f"--steps: got '{steps}'; use a whole number from 1")
    return rest, Options(
        Path(out) if out else _OUT, int(steps) if steps else None, Path(trace) if trace else None
    )


def _config(arguments: Sequence[str], size: int) -> TrainConfig:
    """The config for `size` ranks; with one pass of each as a batch unless a batch is given."""
    overrides, config_dir, flags = split_arguments(arguments)
    about = "measures a config, not a run"
    compose_only("bench", overrides, flags, ["--out", "--steps", "--trace"], about)
    given = any(o.lstrip("+").startswith(("data.global_batch=", "experiment=")) for o in overrides)
    batch = [] if given else ["data.global_batch=${data.micro_batch}"]
    config = compose([*overrides, *batch], config_dir, name="train")
    layout = Layout.of(config.engine, size)
    if not given:
        whole = config.data.micro_batch * layout.data_size
        config = replace(config, data=replace(config.data, global_batch=whole))
    passes(config.data, layout)
    return config


def _alone_on_a_node(config: TrainConfig, size: int) -> TrainConfig:
    """The config on a cluster of as many devices as there were ranks; memory is the same."""
    return replace(config, cluster=replace(config.cluster, nodes=1, devices_per_node=size))


@contextmanager
def _progress(*, main: bool) -> Iterator[Callable[[str], None]]:
    """Says what is being measured: a line that changes on a terminal, plain lines elsewhere."""
    if not main:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield lambda text: print(f"bench: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status("bench") as status:
        yield lambda text: status.update(f"bench: {text}")
