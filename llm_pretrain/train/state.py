"""What goes into a checkpoint, and how a run gets its state back."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_pretrain.checkpoint.average import fill_mean
from llm_pretrain.checkpoint.store import CheckpointStore, Meta
from llm_pretrain.checkpoint.tensors import fill, keys
from llm_pretrain.config.diff import completed, differences, fingerprint, trajectory
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.engine.base import Engine, State
from llm_pretrain.errors import UserError
from llm_pretrain.optim.averaging import Averages
from llm_pretrain.records import now
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of
from llm_pretrain.world import World


def checkpoint_state(
    engine: Engine, world: World, averages: Averages | None = None
) -> dict[str, Any]:
    """Tensors of a checkpoint: model, optimizer, each rank's generator states, averages if any."""
    state = {**engine.state(), "rng": {f"rank{world.rank}": _rng(world)}}
    return {**state, "average": averages.state()} if averages and averages.names else state


def checkpoint_meta(
    run_id: str, config: TrainConfig, loader: Loader, world: World, step: int
) -> dict[str, Any]:
    """The fields of Meta that are known when a save starts."""
    schedule = schedule_of(config)
    return {
        "step": step,
        "tokens": clock_of(config).tokens_at(step),
        "run": run_id,
        "fingerprints": {
            "schedule": schedule.fingerprint(),
            "data": loader.fingerprint(),
            "config": fingerprint(trajectory(config)),
        },
        "schedule": schedule.to_dict(),
        "config": trajectory(config),
        "world_size": world.size,
        "engine": config.engine.name,
        "created": now(),
    }


def check_same_run(meta: Meta, config: TrainConfig, loader: Loader, where: str) -> None:
    """Raise UserError, showing both sides, when a checkpoint was written by a different run."""
    changed = differences(completed(meta.config), trajectory(config))
    old, new = Schedule.from_dict(meta.schedule), schedule_of(config)
    if old != new and not new.prolongs(old):
        changed.append(f"schedule: {old.describe()} -> {new.describe()}")
    if not changed and meta.fingerprints["data"] != loader.fingerprint():
        changed.append("data: the tokens on disk are not those that were trained on")
    if changed:
        raise UserError(
            f"{where}: its checkpoint at step {meta.step} was trained with other settings:\n  "
            + "\n  ".join(changed)
            + "\na resume cannot change them; make a branch: llm-pretrain branch apply "
            f"parent={where} at=[{meta.step} steps] ..."
        )


def restore(
    run: Run,
    config: TrainConfig,
    engine: Engine,
    loader: Loader,
    world: World,
    *,
    averages: Averages,
    saved: int | None,
) -> tuple[int, str]:
    """Load the run's own checkpoint of step `saved`, else the parent's.

    Returns the updates done, and why the update rule begins anew there; empty if it goes on.
    Session has verified what is loaded here. Raises UserError when the settings differ.
    """
    load = partial(_load, config=config, engine=engine, averages=averages, world=world)
    if saved is not None:
        store = CheckpointStore(run.checkpoints)
        check_same_run(store.meta(saved), config, loader, str(run.path))
        return saved, load(store, saved)
    parent = run.parent_run()
    if parent is None:
        return run.begin, ""
    store = CheckpointStore(parent.checkpoints)
    if config.mean_of:
        _load_mean([store.path(s) for s in config.mean_of], engine, world, run.begin)
        return run.begin, "a mean of checkpoints has no moments"
    return run.begin, load(store, run.begin)


def _load_mean(folders: list[Path], engine: Engine, world: World, step: int) -> None:
    """The mean of the parameters. Moments start anew: the mean of several is the moment of none."""
    names = {name for name in keys(folders[0]) if name.startswith("model.")}
    engine.load(lambda state: fill_mean(folders, state, group=world.io_group), names, step=step)


def _load(
    store: CheckpointStore,
    step: int,
    *,
    config: TrainConfig,
    engine: Engine,
    averages: Averages,
    world: World,
) -> str:
    folder = store.path(step)
    mine, rng, saved = f"rank{world.rank}", _rng(world), keys(folder)
    # With another world size, ranks that did not exist have no generator state to restore;
    # nothing in training draws from it, so the result does not depend on it.
    known = saved.issuperset(f"rng.{mine}.{kind}" for kind in rng)
    extra = {"rng": {mine: rng}} if known else {}

    def take(state: State) -> None:
        fill(folder, {**_in(saved, state), **extra}, group=world.io_group)

    # Two rules may give the same names to what is not the same.
    rule = completed(store.meta(step).config)["optimizer.name"]
    other = rule != config.optimizer.name
    ours = {n for n in saved if not (other and n.startswith(("optimizer.", "rule.")))}
    goes_on = engine.load(take, ours, step=step)
    averages.load(step, lambda state: fill(folder, state, group=world.io_group), saved)
    if known:
        _set_rng(rng, world)
    if goes_on:
        return ""
    return f"the parent had optimizer={rule}" if other else "the checkpoint has weights only"


def _in(saved: set[str], state: State) -> State:
    """`state` without scales of FP8 that were not saved: those of a run in another precision."""
    scales = {n: t for n, t in state.get("fp8", {}).items() if f"fp8.{n}" in saved}
    rest = {name: part for name, part in state.items() if name != "fp8"}
    return {**rest, "fp8": scales} if scales else rest


def _rng(world: World) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def _set_rng(states: dict[str, torch.Tensor], world: World) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], world.device)
