"""One session of a run: from a config to the exit code, on every rank."""

import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from llm_pretrain.branch.plan import planned_steps
from llm_pretrain import atomic
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import override
from llm_pretrain.config.diff import all_fields, differences, trajectory
from llm_pretrain.config.schema import DataConfig, TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import Prepared, prepare
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.engine.world import World, join
from llm_pretrain.errors import EXIT_CONTINUE, EXIT_OK, DamagedCheckpointError, UserError
from llm_pretrain.runs import Run, new_record, now
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.train.console import RunConsole
from llm_pretrain.train.hardware import device_name
from llm_pretrain.train.interrupt import watch
from llm_pretrain.train.loop import Calendar, Outcome, Trainer
from llm_pretrain.train.state import restore


def start(config: TrainConfig, overrides: Sequence[str] = ()) -> int:
    """Train the run that `config` describes, from where its directory stands; the exit code.

    A second call with the same config continues, or does nothing when the run is finished.
    Raises UserError for input that cannot work, before the directory exists.
    """
    path = Path(config.run.dir)
    if Run.exists(path):
        _refuse_other(Run.open(path), config)
    return _session(config, path, overrides)


def resume(path: Path, overrides: Sequence[str] = ()) -> int:
    """Continue the run at `path`, with changes that leave its past as it is; the exit code."""
    run = Run.open(path)
    config = override(run.config, overrides) if overrides else run.config
    _check_change(run, config)
    return _session(config, path, overrides)


def _session(config: TrainConfig, path: Path, overrides: Sequence[str]) -> int:
    if Run.exists(path) and _is_finished(Run.open(path), config):
        print(f"{path}: finished at step {schedule_of(config).total}; nothing to do")
        return EXIT_OK
    with join(config.engine.device) as world, ExitStack() as stack:
        _check_layout(config, world)
        data = _with_own_tokenizer(config.data, path)
        # Rank 0 prepares, the others find it done.
        world.on_main(lambda: prepare(data, progress=True) and None)
        prepared = prepare(data, progress=False)
        _check_vocabulary(config, prepared)
        world.on_main(lambda: _obtain(config, path, overrides))
        run = Run.open(path)
        world.on_main(lambda: stack.enter_context(run.hold()))
        total = schedule_of(config).total
        console = RunConsole(run.log_path, run.record.name, total, main=world.main)
        stack.callback(console.close)
        world.on_main(lambda: _ready(run, config, prepared, console))
        return _train(run, config, world, prepared, console)


def _train(
    run: Run, config: TrainConfig, world: World, prepared: Prepared, console: RunConsole
) -> int:
    loader = Loader(config, prepared)
    engine = FsdpEngine(config, world)
    calendar = Calendar.of(config, frozenset(planned_steps(config)))
    trainer = Trainer(
        run=run,
        config=config,
        calendar=calendar,
        world=world,
        engine=engine,
        loader=loader,
        console=console,
    )
    step = restore(run, config, engine, loader, world)
    peak = trainer.peak_source
    world.on_main(lambda: _begin_session(run, config, world, step, peak))
    console.say(_greeting(config, world, step, peak))
    with watch() as stop:
        try:
            outcome = trainer.train(step, stop)
        except BaseException as error:
            if world.main:
                run.update(state="failed", reason=str(error) or type(error).__name__)
            raise
    if world.main:
        _end_session(run, outcome, console)
    return EXIT_OK if outcome.state == "finished" else EXIT_CONTINUE


def _with_own_tokenizer(data: DataConfig, path: Path) -> DataConfig:
    """The data config with the tokenizer that the run directory keeps, once it does."""
    own = Run(path).tokenizer_path
    if not own.exists():
        return data
    return replace(data, tokenizer=replace(data.tokenizer, path=str(own)))


def _obtain(config: TrainConfig, path: Path, overrides: Sequence[str]) -> None:
    """The run directory exists when this returns."""
    if not Run.exists(path):
        total = schedule_of(config).total
        Run.create(config, new_record(config.run.name, total=total, overrides=overrides))


def _ready(run: Run, config: TrainConfig, prepared: Prepared, console: RunConsole) -> None:
    """Under the lock: apply an allowed change, clean up after a crash, verify what to load."""
    if config != run.config:
        run.rewrite_config(config)
        run.update(total=schedule_of(config).total)
    if not run.tokenizer_path.exists():
        shutil.copyfile(prepared.tokenizer.path, run.tokenizer_path)
    for folder in (run.path, run.pins_path):
        atomic.remove_leftovers(folder)
    store = CheckpointStore(run.checkpoints)
    store.sweep()
    meta, damaged = store.latest()
    for error in damaged:
        console.say(f"{error}; using the one before it")
    for step in [s for s in store.steps() if meta is None or s > meta.step]:
        console.say(f"moved aside to {store.set_aside(step)}")
    parent = run.parent_run()
    if meta is None and parent is not None:
        source = CheckpointStore(parent.checkpoints)
        source.verify(run.begin)
        if source.identity(run.begin) != run.record.parent_checkpoint:
            raise DamagedCheckpointError(
                f"{source.path(run.begin)}: not the checkpoint that {run.path} branched from"
            )


def _begin_session(run: Run, config: TrainConfig, world: World, step: int, peak: str) -> None:
    run.rewind_metrics(step)
    session = {
        "time": now(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "from_step": step,
        "world_size": world.size,
        "device": device_name(world.device),
        "engine": config.engine.name,
        "precision": config.precision.name,
        "compile": config.engine.compile,
        "peak": peak,
    }
    sessions = [*run.record.sessions, session]
    run.update(state="running", reason=None, step=step, sessions=sessions)


def _end_session(run: Run, outcome: Outcome, console: RunConsole) -> None:
    finished = now() if outcome.state == "finished" else None
    run.update(state=outcome.state, step=outcome.step, reason=outcome.reason, finished=finished)
    if outcome.state == "interrupted":
        console.say(
            f"stopped by {outcome.reason} after step {outcome.step}, saved; "
            f"continue with: llm-pretrain train resume={run.path}"
        )


def _greeting(config: TrainConfig, world: World, step: int, peak: str) -> str:
    total = schedule_of(config).total
    return (
        f"steps {step} to {total} on {world.size} x {device_name(world.device)}, "
        f"{config.precision.name}, {config.engine.name}"
        f"{', compiled' if config.engine.compile else ''}; MFU against {peak}; "
        f"{schedule_of(config).describe()}"
    )


def _is_finished(run: Run, config: TrainConfig) -> bool:
    return run.record.state == "finished" and run.record.step == schedule_of(config).total


def _refuse_other(run: Run, config: TrainConfig) -> None:
    """Raise UserError when `run` was asked something else than `config`."""
    place = {"run.dir": "", "run.root": ""}
    changed = differences(all_fields(run.config) | place, all_fields(config) | place)
    if changed:
        raise UserError(
            f"{run.path}: exists with other settings:\n  " + "\n  ".join(changed) + "\n"
            "choose another run.name or run.dir, or continue it with: "
            f"llm-pretrain train resume={run.path}"
        )


def _check_change(run: Run, config: TrainConfig) -> None:
    """Raise UserError when a resume asks to change what has been trained already."""
    changed = differences(trajectory(run.config), trajectory(config))
    old, new = schedule_of(run.config), schedule_of(config)
    steps = CheckpointStore(run.checkpoints).steps()
    done = steps[-1] if steps else run.begin
    if old != new and not new.prolongs(old):
        changed.append(f"schedule: {old.describe()} -> {new.describe()}")
    if new.total < done:
        changed.append(f"schedule.total: {new.total} steps, but {done} are done")
    if changed:
        raise UserError(
            f"{run.path}: a resume cannot change\n  " + "\n  ".join(changed) + "\n"
            f"make a branch: llm-pretrain branch apply parent={run.path} "
            f'"at=[{done} steps]" KEY=VALUE'
        )


def _check_layout(config: TrainConfig, world: World) -> None:
    data = config.data
    if data.global_batch % (data.micro_batch * world.size):
        raise UserError(
            f"data.global_batch: {data.global_batch} does not divide over {world.size} ranks with "
            f"data.micro_batch={data.micro_batch}; it must be a multiple of "
            f"{data.micro_batch * world.size}"
        )


def _check_vocabulary(config: TrainConfig, prepared: Prepared) -> None:
    size = prepared.tokenizer.vocab_size
    if size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the vocabulary of "
            f"{prepared.tokenizer.path} ({size}); use at least {size}"
        )
