"""The command `theory`: what the bound says about a schedule, a rate, a longer horizon."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean
from llm_pretrain.runs import Run
from llm_pretrain.schedule.clock import TokenClock
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of
from llm_pretrain.schedule.shapes import FALLS
from llm_pretrain.terminal import console, write
from llm_pretrain.theory import render
from llm_pretrain.theory.arguments import SCHEDULE_KEYS, Arguments
from llm_pretrain.theory.best import best_cooldown, best_falling
from llm_pretrain.theory.bound import averaged, last_iterate, moving
from llm_pretrain.theory.extend import Option, Trunk, Tuning, options
from llm_pretrain.theory.named import Named, parse
from llm_pretrain.theory.transfer import terms_of, transfer

_COMPARED = (
    *("constant", "wsd-5%", "wsd-10%", "wsd-20%", "wsd-40%", "wsd-10%-1-sqrt", "wsd-20%-1-sqrt"),
    *("wsd-40%-1-sqrt", "two-stage-20%", "inverse-sqrt", "inverse-sqrt-20%", "cosine"),
    *("cosine-10%", "linear"),
)
_REFERENCE = "wsd-20%"
_STAGE_KEYS = ("stage.at", "stage.factor")
_TUNED_KEYS = ("cooldown.length", "cooldown.shape", "cooldown.floor")


@dataclass(frozen=True)
class Answer:
    """What a command found, for programs and for people."""

    data: dict[str, Any]
    show: Callable[[Console], None]


def theory(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain theory ARGUMENTS`; the exit code. Raises UserError for bad input."""
    action, *rest = arguments
    if action not in _ACTIONS:
        raise UserError(f"theory {action}: no such command; {did_you_mean(action, _ACTIONS)}")
    keys, command = _ACTIONS[action]
    given = Arguments(action, rest, keys)
    answer = command(given)
    if given.json:
        write(json.dumps(answer.data, indent=2) + "\n")
        return EXIT_OK
    screen = console()
    with screen.capture() as captured:
        answer.show(screen)
    write(captured.get())
    return EXIT_OK


def _bound(given: Arguments) -> Answer:
    name = given.text("schedule", "wsd")
    for key in _STAGE_KEYS:
        if key in given and name != "two-stage":
            raise UserError(f"{key}: is for schedule=two-stage, not {name}")
    total, distance, norm = given.steps("steps"), given.positive("D", 1), given.positive("G", 1)
    drop, factor = given.share("stage.at", "40%"), given.positive("stage.factor", 0.5)
    try:
        named = Named.of(name, given.schedule(), drop, factor)
        multipliers = moving(named.multipliers(total))
    except UserError as error:
        # The fields as they are called here, not in a run's config.
        text = str(error).replace("schedule.total", "steps").removeprefix("schedule.")
        raise UserError(text) from error
    terms = last_iterate(multipliers, norms=norm, distance=distance)
    mean = averaged(multipliers, norms=norm, distance=distance)
    lr = given.positive("lr", terms.optimal_rate)
    data = {
        "schedule": named.label,
        "phases": named.schedule(total).describe(),
        "steps": total,
        "D": distance,
        "G": norm,
        "lr": lr,
        "bound": terms.at(lr),
        "distance_term": terms.distance / lr,
        "noise_term": lr * terms.noise,
        "optimal_lr": terms.optimal_rate,
        "optimal_bound": terms.optimal_bound,
        "averaged_bound": mean.at(lr),
        "averaged_optimal_lr": mean.optimal_rate,
        "averaged_optimal_bound": mean.optimal_bound,
    }
    return Answer(data, lambda console: render.bound(console, data, multipliers))


def _transfer(given: Arguments) -> Answer:
    changes = {key: value for key, value in given.schedule().items() if key == "warmup"}
    old, new = (
        _parsed(key, given.text(key, example), changes)
        for key, example in (("from", "wsd-20%"), ("to", "cosine"))
    )
    lr, total = given.positive("lr"), given.steps("steps")
    new_total = given.steps("to.steps", total)
    before, after = old.terms(total), new.terms(new_total)
    moved = transfer(lr, before, after)
    data = {
        "from": {"schedule": old.label, "steps": total, "lr": lr},
        "to": {"schedule": new.label, "steps": new_total, "lr": moved},
        "lr": moved,
        "ratio": moved / lr,
        "bound_ratio": after.optimal_bound / before.optimal_bound,
        "bound_ratio_at_old_lr": after.at(before.optimal_rate) / before.optimal_bound,
    }
    return Answer(data, lambda console: render.transfer(console, data, before, after))


def _extend(given: Arguments) -> Answer:
    schedule, lr, clock = _given_run(given)
    tuning = None
    if schedule.cooldown is None:
        tuning = _tuning(given, given.steps("steps", schedule.total))
    else:
        for key in (*_TUNED_KEYS, *(("steps",) if "run" in given else ())):
            if key in given:
                raise UserError(f"{key}: the run has a cooldown of its own; leave it out")
    trunk = Trunk.of(schedule, lr, tuning, given.position("at", clock, 0) or None)
    total = given.position("to", clock)
    found = options(trunk, total)
    fresh = parse("linear").terms(total)
    data = {
        "run": given.text("run" if "run" in given else "from", "runs/demo"),
        "lr": lr,
        "at": trunk.at,
        "tuned": {"steps": trunk.tuned.total, "phases": trunk.tuned.describe()},
        "to": total,
        "options": [_described(option, trunk, found[0].bound) for option in found],
        "preferred": min(found, key=lambda option: option.bound).what,
        "new_linear_run": {
            "lr": transfer(lr, terms_of(trunk.tuned, lr), fresh),
            "bound": fresh.optimal_bound,
            "relative_bound": fresh.optimal_bound / found[0].bound,
        },
    }
    return Answer(data, lambda console: render.extend(console, data, found, trunk))


def _described(option: Option, trunk: Trunk, usual: float) -> dict[str, Any]:
    """An option for programs. `usual`: the bound of what merely goes on."""
    constant, total = trunk.constant.phases[-1], option.schedule.total
    return {
        "what": option.what,
        "branch": option.branch,
        "lr": constant.peak * constant.first * option.factor,
        "factor": option.factor,
        "cooldown_steps": option.cooldown,
        "cooldown_share": option.cooldown / total,
        "bound": option.bound,
        "relative_bound": option.bound / usual,
        "best_lr_ratio": option.ratio,
        "phases": option.schedule.describe(),
    }


def _given_run(given: Arguments) -> tuple[Schedule, float, TokenClock | None]:
    """Schedule and peak rate of what is to be carried on, and the clock of a run's tokens."""
    if "run" in given:
        for key in ("from", "lr"):
            if key in given:
                raise UserError(f"{key}: excludes run=, which says it")
        config = Run.open(Path(given.text("run", "runs/demo"))).config
        return schedule_of(config), config.optimizer.lr, clock_of(config)
    if "from" not in given:
        raise UserError("run: missing; theory extend needs run=runs/demo, or from=wsd-20% steps=N")
    named = _parsed("from", given.text("from", "wsd-20%"), {})
    lr = given.positive("lr", 1.0)
    return named.schedule(given.steps("steps"), lr), lr, None


def _tuning(given: Arguments, total: int) -> Tuning:
    """The cooldown that a constant run's rate is taken to be tuned with."""
    length = given.share("cooldown.length", "20%")
    if length.unit == "tokens":
        raise UserError(f"cooldown.length: '{length}'; use steps or a percentage")
    count = length.of(total) if length.unit == "percent" else int(length.amount)
    shape = given.text("cooldown.shape", "linear") if "cooldown.shape" in given else "1-sqrt"
    if shape not in FALLS:
        raise UserError(f"cooldown.shape: '{shape}'; {did_you_mean(shape, FALLS)}")
    floor = given.positive("cooldown.floor", 0.0)
    return Tuning(total, count, shape, floor)


def _compare(given: Arguments) -> Answer:
    total, distance, norm = given.steps("steps"), given.positive("D", 1), given.positive("G", 1)
    lr = given.positive("lr") if "lr" in given else None
    schedules = {text: parse(text).multipliers(total) for text in _COMPARED}
    schedules["wsd-20%, best shape"] = best_cooldown(total, max(1, total // 5))
    schedules["best that never rises"] = best_falling(total)
    terms = {
        name: last_iterate(values, norms=norm, distance=distance)
        for name, values in schedules.items()
    }
    rows = [
        {
            "schedule": name,
            "optimal_lr": found.optimal_rate,
            "lr_ratio": found.optimal_rate / terms[_REFERENCE].optimal_rate,
            "optimal_bound": found.optimal_bound,
            "above_best": found.optimal_bound / terms["best that never rises"].optimal_bound - 1,
            **({"bound": found.at(lr)} if lr else {}),
        }
        for name, found in sorted(terms.items(), key=lambda item: item[1].optimal_bound)
    ]
    data: dict[str, Any] = {"steps": total, "D": distance, "G": norm, "lr": lr}
    data |= {"reference": _REFERENCE, "schedules": rows}
    return Answer(data, lambda console: render.compare(console, data, schedules))


def _parsed(key: str, text: str, changes: dict[str, Any]) -> Named:
    try:
        return parse(text, changes)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


_ACTIONS: dict[str, tuple[Sequence[str], Callable[[Arguments], Answer]]] = {
    "bound": (("schedule", "steps", "lr", "D", "G", *SCHEDULE_KEYS, *_STAGE_KEYS), _bound),
    "transfer": (("from", "to", "lr", "steps", "to.steps", "warmup"), _transfer),
    "extend": (("run", "to", "at", "steps", "from", "lr", *_TUNED_KEYS), _extend),
    "compare": (("steps", "lr", "D", "G"), _compare),
}
