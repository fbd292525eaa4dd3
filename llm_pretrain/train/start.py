"""Start or continue a run: what may differ from what its directory says, and what may not."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_pretrain.branch.plan import check_plan
from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import override
from llm_pretrain.config.diff import all_fields, differences, trajectory
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of


def start(config: TrainConfig, overrides: Sequence[str] = ()) -> int:
    """Train the run that `config` describes, from where its directory stands; the exit code.

    A second call with the same config continues, or does nothing when the run is finished.
    Raises UserError for input that cannot work, before the directory exists.
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
        config = Run.open(path).config
    return _train_unless_finished(config, path, overrides)


def resume(path: Path, overrides: Sequence[str] = ()) -> int:
    """Continue the run at `path`, with changes that leave its past as it is; the exit code."""
    run = Run.open(path)
    config = override(run.config, overrides) if overrides else run.config
    check_change(run, config)
    return _train_unless_finished(config, path, overrides)


def _train_unless_finished(config: TrainConfig, path: Path, overrides: Sequence[str]) -> int:
    check_plan(config)
    if Run.exists(path) and finished(Run.open(path), config):
        print(f"{path}: finished at step {schedule_of(config).total}; nothing to do")
        return EXIT_OK
    # Imported late: torch takes seconds, which bad input and a finished run need not wait for.
    from llm_pretrain.train.session import run_session  # noqa: PLC0415

    return run_session(config, path, overrides)


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


def finished(run: Run, config: TrainConfig) -> bool:
    """Whether the run has reached the end that `config` asks for."""
    record = run.record
    return record.state == "finished" and record.step == schedule_of(config).total


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
