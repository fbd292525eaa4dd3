"""The command `train`: overrides in Hydra's grammar, Hydra's own flags, and `resume=`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from llm_pretrain.config import compose as composing
from llm_pretrain.config.arguments import split_arguments
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.groups import conf_dir
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_CONTINUE, EXIT_OK, UserError, guarded
from llm_pretrain.runs import Run
from llm_pretrain.train.directory import done
from llm_pretrain.train.start import (
    check_job,
    enlist,
    launch_all,
    placed,
    resume,
    start,
    stays_here,
)

T = TypeVar("T")


def train(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain train ARGUMENTS`; the exit code. Raises UserError for bad input."""
    overrides, config_dir, flags = split_arguments(arguments)
    wait = "--wait" in flags
    if "--dry-run" in flags:
        return _dry_run(flags, overrides, config_dir)
    flags = [flag for flag in flags if flag != "--wait"]
    place = [o for o in overrides if o.startswith("resume=")]
    if flags and place:
        raise UserError(f"{place[-1]}: continues one run as it is; {flags[0]} composes new ones")
    if flags:
        return _hydra(flags, overrides, config_dir, wait=wait)
    if place:
        rest = [o for o in overrides if o not in place]
        path = place[-1].removeprefix("resume=")
        if not path:
            raise UserError("resume: missing; name the run to continue: resume=runs/demo")
        return resume(Path(path), rest, config_dir, wait=wait)
    return start(composing.compose(overrides, config_dir), overrides, wait=wait)


def _dry_run(flags: Sequence[str], overrides: list[str], config_dir: Path | None) -> int:
    """Print the scripts of the jobs that would be submitted."""
    from launch.start import preview  # noqa: PLC0415  (only for this flag)

    parsed = composing.check_overrides(overrides, TrainConfig, config_dir)
    many = "--multirun" in flags or "-m" in flags
    jobs = composing.sweep(parsed) if many else [overrides]
    configs = [composing.compose(job, config_dir) for job in jobs]
    for _, found in _by_cluster([(config, config.cluster) for config in configs]):
        print(preview(found[0], len(found)))
    return EXIT_OK


def _hydra(
    flags: Sequence[str], overrides: list[str], config_dir: Path | None, *, wait: bool
) -> int:
    """Leave Hydra's flags (--multirun, --cfg, --info, ...) to Hydra itself."""
    import hydra  # noqa: PLC0415  (only these flags need Hydra's application mode)

    parsed = composing.check_overrides(overrides, TrainConfig, config_dir)
    swept = composing.swept_keys(parsed)
    if "--multirun" in flags or "-m" in flags:
        for combination in composing.sweep(parsed):
            config = composing.compose(combination, config_dir)
            if not stays_here(config, alone=not swept):
                check_job(config)
    composing.register()
    codes: list[int] = []
    waiting: list[tuple[Run, ClusterConfig]] = []

    @hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
    def job(composed: Any) -> None:
        codes.append(guarded(lambda _: _job(composed, swept, waiting), []))
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
    for cluster, runs in _by_cluster(waiting):
        codes.append(launch_all(runs, cluster, wait=wait))
    return max(codes, default=EXIT_OK)


def _by_cluster(items: Sequence[tuple[T, ClusterConfig]]) -> list[tuple[ClusterConfig, list[T]]]:
    """What goes to the same place together, as an array of jobs."""
    found: list[tuple[ClusterConfig, list[T]]] = []
    for item, cluster in items:
        group = next((group for known, group in found if known == cluster), None)
        if group is None:
            found.append((cluster, [item]))
        else:
            group.append(item)
    return found


def _job(composed: Any, swept: set[str], waiting: list[tuple[Run, ClusterConfig]]) -> int:
    """One job of a multirun: its name carries what differs, so that each has its directory.

    What is not trained here and now is added to `waiting`.
    """
    from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415

    values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    config = composing.build_train(values)
    overrides = list(HydraConfig.get().overrides.task)
    if swept:
        name = f"{config.run.name}.{composing.sweep_name(overrides, swept)}"
        place = str(Path(config.run.dir).with_name(name))
        config = replace(config, run=replace(config.run, name=name, dir=place))
    plain = [o.lstrip("+") for o in overrides]
    if stays_here(config, alone=not swept):
        return start(config, plain)
    config = placed(config, plain)
    if not done(config, Path(config.run.dir)):
        waiting.append((enlist(config, plain), config.cluster))
    return EXIT_OK
