"""The command `train`: overrides in Hydra's grammar, Hydra's own flags, and `resume=`."""

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from llm_pretrain.config import compose as composing
from llm_pretrain.config.help import train_help
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_CONTINUE, EXIT_OK, UserError, guarded
from llm_pretrain.train.start import resume, start

_FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i"),
    *("--config-name", "-cn", "--config-path", "-cp"),
)


def train(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain train ARGUMENTS`; the exit code. Raises UserError for bad input."""
    if any(a in ("--help", "-h") for a in arguments):
        print(train_help())
        return EXIT_OK
    overrides, config_dir, flags = split_arguments(arguments)
    place = [o for o in overrides if o.startswith("resume=")]
    if flags and place:
        raise UserError(f"{place[-1]}: continues one run as it is; {flags[0]} composes new ones")
    if flags:
        return _hydra(flags, overrides, config_dir)
    if place:
        rest = [o for o in overrides if o not in place]
        return resume(Path(place[-1].removeprefix("resume=")), rest)
    return start(composing.compose(overrides, config_dir), overrides)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """Overrides, the user's config folder (--config-dir), and Hydra's other flags."""
    overrides, flags, config_dir = [], [], None
    pending = deque(arguments)
    while pending:
        argument = pending.popleft()
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            config_dir = Path(value or (pending.popleft() if pending else ""))
            if not config_dir.is_dir():
                raise UserError(f"--config-dir: '{config_dir}' is no folder")
        elif argument.startswith("-"):
            flags.append(argument)
            if argument in _FLAGS_WITH_VALUE and pending and "=" not in pending[0]:
                flags.append(pending.popleft())
        else:
            overrides.append(argument)
    return overrides, config_dir, flags


def _hydra(flags: Sequence[str], overrides: list[str], config_dir: Path | None) -> int:
    """Leave Hydra's flags (--multirun, --cfg, --info, ...) to Hydra itself."""
    import hydra  # noqa: PLC0415  (only these flags need Hydra's application mode)

    search = [config_dir] if config_dir else []
    parsed = composing.check_overrides(overrides, TrainConfig, search)
    if "--multirun" in flags or "-m" in flags:
        for combination in composing.sweep(parsed):
            composing.compose(combination, config_dir)
    composing.register()
    codes: list[int] = []

    @hydra.main(config_path=str(composing.conf_dir()), config_name="train", version_base="1.3")
    def job(composed: Any) -> None:
        codes.append(guarded(lambda _: _job(composed, composing.swept_keys(parsed)), []))
        if codes[-1] == EXIT_CONTINUE:  # stopped by a signal, which means the sweep as well
            sys.exit(EXIT_CONTINUE)

    ready = [composing.forced(o, item) for o, item in zip(overrides, parsed, strict=True)]
    folder = ["--config-dir", str(config_dir)] if config_dir else []
    # Hydra's parser takes overrides only in one piece, after the flags.
    saved, sys.argv = sys.argv, ["llm-pretrain train", *flags, *folder, *ready]
    try:
        job()
    finally:
        sys.argv = saved
    return max(codes, default=EXIT_OK)


def _job(composed: Any, swept: set[str]) -> int:
    """One job of a multirun: its name carries what differs, so that each has its directory."""
    from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415

    values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    config = composing.build_train(values)
    overrides = list(HydraConfig.get().overrides.task)
    if swept:
        name = f"{config.run.name}.{composing.sweep_name(overrides, swept)}"
        place = str(Path(config.run.dir).with_name(name))
        config = replace(config, run=replace(config.run, name=name, dir=place))
    return start(config, [o.lstrip("+") for o in overrides])
