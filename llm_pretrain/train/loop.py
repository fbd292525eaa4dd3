"""The training loop: batch, update, measure, evaluate, save; stop when asked."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llm_pretrain.checkpoint.retention import prune, restore_hidden
from llm_pretrain.checkpoint.saver import Saver
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prefetch import Prefetcher
from llm_pretrain.duration import Duration
from llm_pretrain.engine.base import Engine
from llm_pretrain.errors import LostRankError, UserError
from llm_pretrain.optim.averaging import Averages
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import clock_of, schedule_of
from llm_pretrain.train.average import evaluate_averages
from llm_pretrain.train.console import RunConsole
from llm_pretrain.train.evaluate import evaluate
from llm_pretrain.train.garbage import Collector
from llm_pretrain.train.interrupt import Deadline, StopFlag
from llm_pretrain.train.loggers import Loggers
from llm_pretrain.train.meter import Meter
from llm_pretrain.train.state import checkpoint_meta, checkpoint_state
from llm_pretrain.train.watchdog import Watchdog
from llm_pretrain.world import Vote, World

_GRACE = 10.0
"""Seconds for a save to end after another rank was lost."""


@dataclass(frozen=True)
class Calendar:
    """At which steps something happens, all in steps done."""

    log: int
    evaluate: int
    save: int
    keep: int
    planned: frozenset[int]
    """Steps that the run's own plan branches from."""
    total: int

    @classmethod
    def of(cls, config: TrainConfig, planned: frozenset[int]) -> "Calendar":
        """Intervals of `config` in steps."""
        clock, total = clock_of(config), schedule_of(config).total

        def interval(length: Duration) -> int:
            return clock.length(length, total)

        return cls(
            log=max(1, interval(config.logger.every)),
            evaluate=interval(config.eval.every),
            save=interval(config.checkpoint.every),
            keep=interval(config.checkpoint.keep_every),
            planned=planned,
            total=total,
        )

    def logs(self, step: int, begin: int) -> bool:
        """Whether training metrics are due after `step` updates."""
        return step % self.log == 0 or step in (begin + 1, self.total)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due."""
        return step == self.total or (self.evaluate > 0 and step % self.evaluate == 0)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due."""
        due = self.save > 0 and step % self.save == 0
        return due or step == self.total or step in self.planned


@dataclass(frozen=True)
class Outcome:
    """How a session of training ended."""

    state: Literal["finished", "interrupted"]
    step: int
    reason: str | None = None


class Trainer:
    """Trains one run from `step` to its end, with everything already placed and loaded."""

    def __init__(
        self,
        *,
        run: Run,
        config: TrainConfig,
        calendar: Calendar,
        world: World,
        engine: Engine,
        averages: Averages,
        loader: Loader,
        console: RunConsole,
    ) -> None:
        self._run, self._config, self._calendar = run, config, calendar
        self._world, self._engine, self._loader, self._console = world, engine, loader, console
        self._averages = averages
        self._schedule, self._clock = schedule_of(config), clock_of(config)
        # Read once: on many ranks, a file that is opened in every step is a load for its server.
        record = run.record
        self._id, self._begin = record.id, record.begin
        self._store = CheckpointStore(run.checkpoints)
        self._saver = Saver(self._store, world)
        self._meter = Meter(config, world)
        self._loggers: Loggers | None = None
        self._saved: int | None = None
        self._watchdog = Watchdog(None, lambda: None)

    @property
    def peak_source(self) -> str:
        """Where the denominator of MFU is from."""
        return self._meter.peak.source

    def train(self, step: int, stop: StopFlag, watchdog: Watchdog) -> Outcome:
        """Train from `step` updates done to the end, or to the first boundary after a stop.

        `watchdog` gets a sign after each step. Raises UserError when a save fails or the loss is no
        longer a number, LostRankError when another rank is gone.
        """
        self._saved = step if step > self._begin else None
        self._watchdog = watchdog
        if self._world.main:
            restore_hidden(self._store)
            self._loggers = Loggers(self._config, self._run.path, self._console.say)
        patience = None
        try:
            with self._world.watched():
                return self._train(step, stop)
        except LostRankError:
            # A save that is under way waits for that rank too, and would do so for longer.
            patience = _GRACE
            raise
        finally:
            # Also after an error: nothing may write into the run once its lock is released.
            self._saver.join(patience)
            if self._loggers:
                self._loggers.close()

    def _train(self, step: int, stop: StopFlag) -> Outcome:
        total, vote, deadline = self._calendar.total, Vote(self._world), Deadline()
        if self._config.mean_of and not self._world.on_main(lambda: self._store.has(total)):
            # It trains nothing, so nothing else would evaluate it.
            with self._watchdog.paused():
                self._record(total, self._evaluate())
        with Prefetcher(self._batch) as batches, Collector() as collector:
            self._meter.start()
            while step < total:
                loss, norm = self._update(step, batches.get(step))
                step += 1
                self._averages.after(step)
                self._after(step, loss, norm)
                self._console.advance(step)
                self._watchdog.alive()
                collector.after(step)
                if deadline.near(self._saver.seconds):
                    stop.by = stop.by or "the job's time limit"
                if vote.cast(stop.by is not None or self._saver.failed) and step < total:
                    # A failed save raises its error here.
                    self._look(step, loss, norm)
                    with self._watchdog.paused():
                        self._save(step)
                        self._complete_save()
                    return Outcome("interrupted", step, stop.by or "another rank")
        with self._watchdog.paused():
            self._save(total)
            self._complete_save()
        return Outcome("finished", total)

    def _batch(self, step: int) -> torch.Tensor:
        rows = self._loader.batch(step, self._world.data_rank, self._world.data_size)
        tokens = torch.from_numpy(rows)
        return tokens.pin_memory() if self._world.device.type == "cuda" else tokens

    def _update(self, step: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer update; this rank's loss and the gradient norm, still on the device."""
        micro = self._config.data.micro_batch
        passes = torch.split(rows, micro)
        total = torch.zeros((), device=self._world.device)
        for i, tokens in enumerate(passes):
            last = i == len(passes) - 1
            total += self._engine.forward_backward(tokens, weight=1 / len(passes), last=last)
        norm = self._engine.step(self._schedule.lr(step))
        self._meter.count(rows.shape[0] * (rows.shape[1] - 1) * self._world.data_size)
        return total, norm

    def _after(self, step: int, local_loss: torch.Tensor, local_norm: torch.Tensor) -> None:
        """Measure, evaluate and save after `step` updates, in this order.

        The rows of a step are on disk before its checkpoint exists, so a resume from it has them.
        """
        logs, saves = self._calendar.logs(step, self._begin), self._calendar.saves(step)
        if logs or saves:
            loss, norm = self._look(step, local_loss, local_norm)
        if logs:
            lr = self._schedule.lr(step - 1)
            rates = {name: rate.item() for name, rate in self._engine.rates().items()}
            seen = {"loss": loss, "lr": lr, **rates, "grad_norm": norm, **self._outliers()}
            self._record(step, {**seen, **self._meter.read()})
        if self._calendar.evaluates(step):
            with self._meter.paused(), self._watchdog.paused():
                self._record(step, self._evaluate())
        if saves:
            with self._meter.paused(), self._watchdog.paused():
                self._save(step)

    def _evaluate(self) -> dict[str, float]:
        """Of the parameters, and of each average that is complete."""

        def measure() -> dict[str, float]:
            return evaluate(self._engine, self._loader, self._config, self._world)

        return {**measure(), **evaluate_averages(self._averages, measure)}

    def _record(self, step: int, values: dict[str, Any]) -> None:
        if not self._world.main:
            return
        row = {"step": step, "tokens": self._clock.tokens_at(step), **values}
        self._run.append_metrics(row)
        self._console.measured(row)
        if self._loggers:
            self._loggers.log(row)

    def _look(
        self, step: int, local_loss: torch.Tensor, local_norm: torch.Tensor
    ) -> tuple[float, float]:
        """Loss over all ranks and gradient norm, which waits for the device.

        Raises UserError when they are no numbers, before a checkpoint could hold such.
        """
        loss = (self._world.sum(local_loss.clone()) / self._world.data_size).item()
        norm = local_norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"{self._run.path}: the loss is {loss}, the gradient norm {norm} at step {step} "
                f"(optimizer.lr={self._config.optimizer.lr:g}); the checkpoints before it are "
                "intact: branch from one with a lower rate"
            )
        return loss, norm

    def _outliers(self) -> dict[str, float]:
        """The largest kurtosis of a block's output in the last pass, if it is watched."""
        kurtosis = self._engine.kurtosis()
        if kurtosis is None:
            return {}
        of_blocks = self._world.sum(kurtosis.clone()) / self._world.data_size  # (L,)
        return {"kurtosis": round(of_blocks.max().item(), 3)}

    def _save(self, step: int) -> None:
        if step == self._saved:
            return
        self._complete_save()
        state = checkpoint_state(self._engine, self._world, self._averages)
        meta = checkpoint_meta(self._id, self._config, self._loader, self._world, step)
        self._saver.start(state, meta)
        self._saved = step
        if self._world.main:
            self._run.update(step=step)

    def _complete_save(self) -> None:
        """Wait for the running save, then delete what it made superfluous."""
        self._saver.wait()
        if self._world.main:
            last, every = self._config.checkpoint.keep_last, self._calendar.keep
            planned = set(self._calendar.planned)
            for step in prune(self._store, last, every, planned, self._run.pinned):
                self._console.say(f"deleted checkpoint {step}")
