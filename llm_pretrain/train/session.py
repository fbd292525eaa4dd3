"""One session of a run: everything between a checked config and the exit code, on every rank."""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_pretrain import atomic
from llm_pretrain.branch.plan import planned_steps
from llm_pretrain.checkpoint.store import CheckpointStore, Meta
from llm_pretrain.checkpoint.verify import latest, verify
from llm_pretrain.config.layout import passes
from llm_pretrain.config.optimizer_rules import advice
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import Prepared, prepare
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.choices import Settled, settle
from llm_pretrain.engine.zero_config import require_deepspeed
from llm_pretrain.errors import (
    EXIT_CONTINUE,
    EXIT_FAILED,
    EXIT_OK,
    DamagedCheckpointError,
    LostRankError,
    UserError,
)
from llm_pretrain.numa import bind_near
from llm_pretrain.records import now
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.train import flight, rollcall
from llm_pretrain.train.average import averages_of
from llm_pretrain.train.console import RunConsole
from llm_pretrain.train.corpus import check_vocabulary, fill_cache, with_own_tokenizer
from llm_pretrain.train.directory import check_change, done, finished, obtain
from llm_pretrain.train.hardware import device_name
from llm_pretrain.train.interrupt import watch
from llm_pretrain.train.loop import Calendar, Outcome, Trainer
from llm_pretrain.train.lost import Witness
from llm_pretrain.train.state import restore
from llm_pretrain.train.watchdog import Watchdog
from llm_pretrain.world import World, join


@dataclass(frozen=True)
class Session:
    """Trains the run at `path` until it ends or is stopped."""

    config: TrainConfig
    settled: Settled
    """The same with what this machine computes it with."""
    path: Path
    overrides: Sequence[str]
    """What this command line asked for, for the record."""
    world: World
    hosts: Sequence[str]
    """Of each rank."""
    patience: float = 0.0
    """Seconds to wait for another process that trains the run to end."""

    def run(self) -> int:
        """Prepare data, create or open the run, lock it, train it; the exit code.

        Raises UserError before the directory exists when the input cannot work.
        """
        world = self.world
        data = with_own_tokenizer(self.config.data, self.path)
        world.on_main(lambda: fill_cache(data))
        prepared = prepare(data)
        check_vocabulary(self.config, prepared)
        world.on_main(self._obtain)
        run = Run.open(self.path)
        with ExitStack() as stack:
            world.on_main(lambda: stack.enter_context(run.hold(self.patience)))
            if world.on_main(lambda: finished(run, self.config)):
                print(f"{run.path}: finished by another process")
                return EXIT_OK
            total = schedule_of(self.config).total
            console = RunConsole(run.log_path, run.record.name, total, main=world.main)
            stack.callback(console.close)
            world.on_main(lambda: self._ready(run, prepared))
            saved = self._verified(run, console)
            # After data are prepared, for which all cores are welcome; before any pinned memory.
            bound = bind_near(world.device)
            if bound:
                console.say(bound)
            code = self._train(run, prepared, console, saved)
        # torchrun ends the other ranks when the first one exits; rank 0 must have closed the run.
        world.gather(None)
        return code

    def _obtain(self) -> None:
        """The run directory exists when this returns."""
        if not Run.exists(self.path):
            atomic.remove_leftovers(self.path.parent)
            obtain(self.config, self.overrides)

    def _ready(self, run: Run, prepared: Prepared) -> None:
        """Under the lock: apply an allowed change, clean up after a crash."""
        run = Run.open(run.path)
        if self.config != run.config:
            # Once more under the lock: the run may have gone on since the first look.
            check_change(run, self.config)
            run.rewrite_config(self.config)
        if not run.tokenizer_path.exists():
            atomic.write_text(run.tokenizer_path, prepared.tokenizer.path.read_text())
        for folder in (run.path, run.pins_path):
            atomic.remove_leftovers(folder)
        CheckpointStore(run.checkpoints).sweep()
        rollcall.clear(run.rollcall_path)
        flight.tidy(run.flight_path)

    def _verified(self, run: Run, console: RunConsole) -> int | None:
        """Step of the run's newest checkpoint that is whole, if there is one; else its parent's is.

        Damaged ones are moved aside. Raises DamagedCheckpointError about the parent's.
        """
        store = CheckpointStore(run.checkpoints)
        meta, damaged = latest(store, self.world)
        for error in damaged:
            console.say(f"{error}; using the one before it")
        if damaged:
            self.world.on_main(lambda: _set_aside(store, meta, console))
        if meta is not None:
            return meta.step
        parent = run.parent_run()
        if parent is not None:
            source = CheckpointStore(parent.checkpoints)
            for step in self.config.mean_of or [run.begin]:
                verify(source, step, self.world)
            if source.identity(run.begin) != run.record.parent_checkpoint:
                raise DamagedCheckpointError(
                    f"{source.path(run.begin)}: not the checkpoint that {run.path} branched from"
                )
        return None

    def _train(self, run: Run, prepared: Prepared, console: RunConsole, saved: int | None) -> int:
        config, world = self.config, self.world
        loader = Loader(config, prepared)
        fresh = saved is None and run.record.parent is None
        end = prepared.tokenizer.end_of_text_id
        engine = build_engine(self.settled.config, world, fresh=fresh, end_of_text=end)
        averages = averages_of(config, engine.parts())
        calendar = Calendar.of(config, frozenset(planned_steps(config)))
        trainer = Trainer(
            run=run,
            config=config,
            calendar=calendar,
            world=world,
            engine=engine,
            averages=averages,
            loader=loader,
            console=console,
        )
        step, anew = restore(run, config, engine, loader, world, averages=averages, saved=saved)
        if anew:
            console.say(f"{config.optimizer.name}: starts anew, {anew}")
        peak = trainer.peak_source
        number = world.on_main(lambda: self._begin(run, step, peak, anew))
        witness = Witness(run, world, self.hosts, flight.place(run.flight_path, number))
        console.say(self._greeting(step, peak))
        for line in (*map(str, self.settled.chosen), *advice(config)):
            console.say(line)
        try:
            outcome = self._steps(trainer, step, witness, console)
        except OSError as error:
            self._failed(run, error, console)
            raise UserError(f"{run.path}: cannot be written ({error.strerror})") from error
        except BaseException as error:
            self._failed(run, error, console)
            raise
        if world.main:
            _end(run, outcome, console)
            flight.tidy(run.flight_path)
        return EXIT_OK if outcome.state == "finished" else EXIT_CONTINUE

    def _steps(self, trainer: Trainer, step: int, witness: Witness, console: RunConsole) -> Outcome:
        """Train. Raises LostRankError with the names of the ranks that do not answer."""
        world, timeout = self.world, self.config.engine.timeout
        # NCCL would abort without a name; the watchdog comes first.
        spare = 3 * rollcall.SECONDS if world.waits_for_devices else 0
        world.limit(training=timeout + spare, saving=self.config.checkpoint.timeout)

        def hung() -> None:
            error = witness.of_silence(timeout)
            self._failed(witness.run, error, console)
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)

        watchdog = Watchdog(timeout if world.waits_for_devices else None, hung)
        with flight.armed(witness.dumps, world), watch() as stop, watchdog:
            try:
                return trainer.train(step, stop, watchdog)
            except LostRankError as error:
                raise witness.explained(error) from error

    def _begin(self, run: Run, step: int, peak: str, anew: str) -> int:
        """Enter this session into the record; its number."""
        config = self.config
        # A mean of checkpoints has measured itself before its only checkpoint.
        mean = bool(config.mean_of) and not CheckpointStore(run.checkpoints).has(step)
        run.rewind_metrics(step - 1 if mean else step)
        entry = {
            "time": now(),
            "host": socket.gethostname(),
            "nodes": list(dict.fromkeys(self.hosts)),
            "pid": os.getpid(),
            "from_step": step,
            "overrides": list(self.overrides),
            "world_size": self.world.size,
            "device": device_name(self.world.device),
            "engine": config.engine.name,
            "layout": self._layout(),
            "precision": config.precision.name,
            "computes": self.settled.to_dict(),
            "optimizer_anew": anew or None,
            "peak": peak,
        }
        sessions = [*run.record.sessions, entry]
        total = schedule_of(config).total
        run.update(
            state="running", reason=None, finished=None, step=step, total=total, sessions=sessions
        )
        return len(sessions)

    def _layout(self) -> dict[str, int]:
        """Who had what of the state, as far as the engine lets it differ."""
        engine = self.config.engine
        if engine.name == "deepspeed":
            return {"zero_stage": engine.zero_stage}
        return asdict(self.world.layout)

    def _failed(self, run: Run, error: BaseException, console: RunConsole) -> None:
        if self.world.main:
            console.failed(error)
            # On a full disk even this may fail; the error itself is what matters then.
            with suppress(OSError):
                run.update(state="failed", reason=str(error) or type(error).__name__)

    def _greeting(self, step: int, peak: str) -> str:
        config, world = self.config, self.world
        schedule = schedule_of(config)
        return (
            f"steps {step} to {schedule.total} on {world.size} x {device_name(world.device)}, "
            f"{config.precision.name}, {config.engine.name}; MFU against {peak}; "
            f"{schedule.describe()}"
        )


def run_session(
    config: TrainConfig, path: Path, overrides: Sequence[str], patience: float = 0.0
) -> int:
    """Train the run at `path` in this process, one of several or the only one; the exit code.

    Raises UserError before the directory exists when the input cannot work.
    """
    with join(config.engine) as world:
        # Slurm's name of the node, by which a job avoids it, may be another than its own.
        hosts = world.gather(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
        passes(config.data, world.layout)
        if config.engine.name == "deepspeed":
            require_deepspeed()
        settled = settle(config, world)
        return Session(config, settled, path, overrides, world, hosts, patience).run()


def train_here(path: Path, *, patience: float = 0.0) -> int:
    """Train the run at `path` as it is, in this process and those it was started with.

    `patience`: seconds to wait for another process that trains it to end.
    """
    config = Run.open(path).config
    return EXIT_OK if done(config, path) else run_session(config, path, (), patience)


def _end(run: Run, outcome: Outcome, console: RunConsole) -> None:
    ended = now() if outcome.state == "finished" else None
    run.update(state=outcome.state, step=outcome.step, reason=outcome.reason, finished=ended)
    if outcome.state == "interrupted":
        console.say(
            f"stopped by {outcome.reason} after step {outcome.step}, saved; "
            f"continue with: llm-pretrain train resume={run.path}"
        )


def _set_aside(store: CheckpointStore, newest: Meta | None, console: RunConsole) -> None:
    """Rename the checkpoints after the newest that is whole."""
    for step in [s for s in store.steps() if newest is None or s > newest.step]:
        console.say(f"moved aside to {store.set_aside(step)}")
