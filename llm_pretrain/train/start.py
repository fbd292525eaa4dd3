"""Start or continue a run: in this process, or handed over to others."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_pretrain import atomic
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import override
from llm_pretrain.config.diff import all_fields, differences
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.runs import Run
from llm_pretrain.theory.tuned import source
from llm_pretrain.train.directory import change, check_change, done, obtain


def start(config: TrainConfig, overrides: Sequence[str] = (), *, wait: bool = False) -> int:
    """Train the run that `config` describes, from where its directory stands; the exit code.

    A second call with the same config continues, or does nothing when the run is finished. `wait`:
    for the end of a job that is submitted. Raises UserError for input that cannot work, before the
    directory exists.
    """
    config = placed(config, overrides)
    path = Path(config.run.dir)
    if done(config, path):
        return EXIT_OK
    if stays_here(config):
        return _train(config, path, overrides)
    return launch_all([enlist(config, overrides)], config.cluster, wait=wait)


def placed(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """The config with the place of its run, or that of the run which is there already.

    Raises UserError when a place that was asked for holds another run.
    """
    named = any(o.lstrip("+").startswith(("run.dir=", "run.name=")) for o in overrides)
    changed = _other_settings(config)
    if changed and not named:
        config = _beside(config, changed)
        changed = _other_settings(config)
    path = Path(config.run.dir)
    if changed:
        raise UserError(
            f"{path}: exists with other settings:\n  " + "\n  ".join(changed) + "\n"
            "choose another run.name or run.dir, or continue it with: "
            f"llm-pretrain train resume={path}"
        )
    if Run.exists(path):
        return Run.open(path).config
    origin = source(config)
    if origin and os.environ.get("RANK", "0") == "0":
        print(origin, flush=True)
    return config


def resume(
    path: Path, overrides: Sequence[str] = (), config_dir: Path | None = None, *, wait: bool = False
) -> int:
    """Continue the run at `path`, with changes that leave its past as it is; the exit code.

    `config_dir`: the user's own groups, for `overrides`.
    """
    run = Run.open(path)
    config = override(run.config, overrides, config_dir) if overrides else run.config
    check_change(run, config)
    if done(config, path):
        return EXIT_OK
    if stays_here(config):
        return _train(config, path, overrides)
    check_job(config)
    if config != run.config:
        change(run, config)
    return launch_all([run], config.cluster, wait=wait)


def enlist(config: TrainConfig, overrides: Sequence[str]) -> Run:
    """The directory of a run that a job will train, created if need be.

    Raises UserError when no job could train it.
    """
    check_job(config)
    return obtain(config, overrides)


def check_job(config: TrainConfig) -> None:
    """Raise UserError for what can be known of a run's job before it is asked for."""
    from launch.start import check_ranks  # noqa: PLC0415  (as below)

    check_launch(config.cluster)
    check_ranks(config, config.cluster)


def check_launch(cluster: ClusterConfig) -> None:
    """Raise UserError when nothing could be handed over from here, before anything is created."""
    from launch.start import check_launch as check  # noqa: PLC0415  (as below)

    check(cluster)


def stays_here(config: TrainConfig, *, alone: bool = True) -> bool:
    """Whether this process trains the run, alone or as a rank that torchrun or Slurm started.

    `alone`: the command has no other run that may be trained at the same time.
    """
    rank = "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ
    here = config.cluster.launcher == "here" and (alone or config.cluster.jobs == 1)
    return rank or here


def _train(config: TrainConfig, path: Path, overrides: Sequence[str]) -> int:
    if os.environ.get("RANK", "0") == "0":
        Run.check(path)
    # Imported late: torch takes seconds, which bad input and a finished run need not wait for.
    from llm_pretrain.train.session import run_session  # noqa: PLC0415

    return run_session(config, path, overrides)


def launch_all(runs: Sequence[Run], cluster: ClusterConfig, *, wait: bool = False) -> int:
    """Hand over the runs; the exit code."""
    from launch.start import launch  # noqa: PLC0415  (a run that stays here needs no executor)

    # Once for all of them: each look lists every run there is.
    for folder in {run.path.parent for run in runs}:
        atomic.remove_leftovers(folder)
    return launch(runs, cluster, wait=wait)


def _other_settings(config: TrainConfig) -> list[str]:
    """How the run that is already in the place of `config` differs from it."""
    path = Path(config.run.dir)
    if not Run.exists(path):
        return []
    place = {"run.dir": "", "run.root": ""}
    return differences(all_fields(Run.open(path).config) | place, all_fields(config) | place)


def _beside(config: TrainConfig, changed: list[str]) -> TrainConfig:
    """The config with a name and place of its own, the same ones for the same settings."""
    fields = all_fields(replace(config, run=replace(config.run, dir="", root="")))
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:6]
    name = f"{config.run.name}.{digest}"
    place = Path(config.run.dir).with_name(name)
    print(f"{config.run.dir} has other settings ({'; '.join(changed)}): this run is {place}")
    return replace(config, run=replace(config.run, name=name, dir=str(place)))
