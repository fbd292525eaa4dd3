"""The directory of a run to train: made, found finished, or given settings that keep its past."""

from collections.abc import Sequence
from pathlib import Path

from llm_pretrain.branch.plan import check_plan
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.diff import differences, trajectory
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.theory.tuned import source


def obtain(config: TrainConfig, overrides: Sequence[str]) -> Run:
    """The directory of the run that `config` describes, created if need be. Raises UserError."""
    path = Path(config.run.dir)
    if Run.exists(path):
        return Run.open(path)
    total, origin = schedule_of(config).total, source(config)
    record = new_record(config.run.name, total=total, overrides=overrides, lr_source=origin)
    return Run.create(config, record)


def done(config: TrainConfig, path: Path) -> bool:
    """Whether nothing is left to train, which is said. Raises UserError about the run's plan."""
    check_plan(config)
    if not Run.exists(path) or not finished(Run.open(path), config):
        return False
    print(f"{path}: finished at step {schedule_of(config).total}; nothing to do")
    return True


def finished(run: Run, config: TrainConfig) -> bool:
    """Whether the run has reached the end that `config` asks for."""
    record = run.record
    return record.state == "finished" and record.step == schedule_of(config).total


def change(run: Run, config: TrainConfig) -> None:
    """Give a run that nobody trains another config, such as a later end.

    Raises UserError when that would change its past, RunInUseError while it is trained.
    """
    with run.hold():
        check_change(run, config)
        run.rewrite_config(config)
        if run.record.state == "finished" and not finished(run, config):
            # Prolonged: it has an end again that it has not reached.
            run.update(state="interrupted", total=schedule_of(config).total, finished=None)


def check_change(run: Run, config: TrainConfig) -> None:
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
