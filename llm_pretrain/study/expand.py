"""From a study to the runs that it needs, and where each of its results will be found."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from llm_pretrain.branch.plan import Branch, Origin, expand
from llm_pretrain.branch.points import points
from llm_pretrain.config.compose import compose, override
from llm_pretrain.config.diff import differences, held_out
from llm_pretrain.config.rules import check
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.config.schema import BranchSpec, TrainConfig
from llm_pretrain.duration import steps
from llm_pretrain.errors import UserError
from llm_pretrain.model.flops import parameter_count
from llm_pretrain.schedule.schedule import Schedule, clock_of, schedule_of
from llm_pretrain.study.config import (
    Horizon,
    MethodConfig,
    SizeConfig,
    StudyConfig,
    check_decided,
    check_study,
)


@dataclass(frozen=True)
class Result:
    """A loss that the study wants, and where it is to be read."""

    size: str
    label: str
    seed: int
    horizon: int
    """Steps from step 0, of its own run."""
    column: int
    """The same horizon in the steps of a method that changes nothing: by it results are compared,
    since a horizon in tokens is other steps where a method has another batch."""
    run: Path
    read: Literal["loss", "average"]
    """What of the run's evaluation at `horizon`."""
    kind: Literal["cooldown", "along", "scratch"]


@dataclass(frozen=True, eq=False)
class Stem:
    """A run from step 0: a trunk with its branches, or a run from scratch."""

    size: str
    method: str
    seed: int
    config: TrainConfig
    branches: tuple[Branch, ...]
    """Of its plan, each once; for a trunk that has no id yet."""
    results: tuple[Result, ...]
    """Its own and its branches'."""

    @property
    def path(self) -> Path:
        """Its run directory."""
        return Path(self.config.run.dir)

    @cached_property
    def schedule(self) -> Schedule:
        """Of `config`."""
        return schedule_of(self.config)

    @property
    def cooldowns(self) -> list[str]:
        """Names of the results that are cooldowns."""
        return list(dict.fromkeys(r.label for r in self.results if r.kind == "cooldown"))

    def branches_of(self, identity: str) -> list[Branch]:
        """The same with the id that the trunk has been given."""
        origin = Origin(self.config, identity, self.path)
        return _each_once(branch for spec in self.config.plan for branch in expand(origin, spec))


def _each_once(branches: Iterable[Branch]) -> list[Branch]:
    found: dict[Path, Branch] = {}
    for branch in branches:
        found.setdefault(branch.path, branch)
    return list(found.values())


def folder(study: StudyConfig) -> Path:
    """Where the study's runs are."""
    return Path(study.root) / study.name


def stems(study: StudyConfig, overrides: list[str], config_dir: Path | None = None) -> list[Stem]:
    """The runs from step 0 of a study, sizes in its order.

    `overrides`: from the command line, over the study's own. `config_dir`: the user's own groups.
    Raises UserError when the study asks for what cannot be.
    """
    check_study(study)
    check_decided("", overrides)
    compose_size = _Composer(study, config_dir)
    found: list[Stem] = []
    for name, size in study.sizes.items():
        try:
            found += _of_size(study, name, _base(study, compose_size(size)), overrides, config_dir)
        except UserError as error:
            raise UserError(f"study.sizes.{name}: {error}") from error
    _check_held_out(found)
    return found


def _of_size(
    study: StudyConfig,
    name: str,
    base: TrainConfig,
    overrides: list[str],
    config_dir: Path | None,
) -> Iterator[Stem]:
    columns = _horizons(study, name, _config(base, MethodConfig(), overrides, config_dir))
    for method_name, method in study.methods.items():
        config = _config(base, method, overrides, config_dir)
        horizons = dict(sorted(zip(_horizons(study, name, config), columns, strict=True)))
        for seed in study.seeds:
            seeded = replace(config, run=replace(config.run, seed=seed))
            yield from _Maker(study, name, method_name, method, seeded, horizons).stems()


def _check_held_out(found: Sequence[Stem]) -> None:
    """Raise UserError when losses could not be compared, as they are of other text."""
    first, *others = {(stem.size, stem.method): stem for stem in found}.values()
    text = held_out(first.config)
    for stem in others:
        if changed := differences(text, held_out(stem.config)):
            raise UserError(
                f"study.methods: {first.config.run.name} and {stem.config.run.name} are evaluated "
                f"on other text, which cannot be compared ({'; '.join(changed)}); use the same"
            )


class _Composer:
    """Configs of sizes: Hydra composes the study's once, and another where a size needs its own."""

    def __init__(self, study: StudyConfig, config_dir: Path | None) -> None:
        self._common, self._config_dir = study.overrides, config_dir
        self._shared: TrainConfig | None = None

    def __call__(self, size: SizeConfig) -> TrainConfig:
        fields = all("." in text.partition("=")[0] for text in size.overrides)
        if not fields:
            return compose([*self._common, *size.overrides], self._config_dir)
        if self._shared is None:
            self._shared = compose(self._common, self._config_dir)
        if not size.overrides:
            return self._shared
        return override(self._shared, size.overrides, self._config_dir)


def _base(study: StudyConfig, config: TrainConfig) -> TrainConfig:
    if study.rate is not None:
        ratio = parameter_count(config.model) / study.rate.parameters
        lr = study.rate.lr * ratio**study.rate.exponent
        config = override(config, [f"optimizer.lr={lr!r}"])
    # What an experiment plans for itself is not the study's.
    return replace(config, plan=[])


def _config(
    base: TrainConfig, method: MethodConfig, overrides: list[str], config_dir: Path | None
) -> TrainConfig:
    # The command line has the last word, as everywhere.
    changes = [*method.overrides, *overrides]
    config = override(base, changes, config_dir) if changes else base
    if method.lr_factor == 1.0:
        return config
    return replace(
        config, optimizer=replace(config.optimizer, lr=config.optimizer.lr * method.lr_factor)
    )


def _horizons(study: StudyConfig, name: str, config: TrainConfig) -> list[int]:
    """In steps of a run that has this config, in the study's order."""
    size = study.sizes[name]
    where = f"study.sizes.{name}.horizons" if size.horizons else "study.horizons"
    clock, found = clock_of(config), list[int]()
    for text in size.horizons or study.horizons:
        horizon = Horizon.parse(text, where)
        if horizon.length is not None:
            found.append(clock.point(horizon.length))
        else:
            assert horizon.ratio is not None
            tokens = int(horizon.ratio * parameter_count(config.model))
            found.append(clock.step_at(max(1, tokens)))
    return found


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of one size, method and seed."""

    study: StudyConfig
    size: str
    method_name: str
    method: MethodConfig
    config: TrainConfig

    horizons: dict[int, int]
    """In its own steps, ascending, each with its column."""

    def stems(self) -> Iterator[Stem]:
        horizons = list(self.horizons)
        if not self.method.scratch:
            yield self._trunk(horizons)
            return
        for horizon in horizons if self.method.only == "all" else horizons[-1:]:
            _check_warmup(self.config, horizon - 1, f"a run to step {horizon}")
            config = self._placed(f"-{horizon}", horizon)
            result = self._result(self.method_name, horizon, Path(config.run.dir), "scratch")
            yield self._stem(config, [result])

    def _trunk(self, horizons: list[int]) -> Stem:
        method = self.method
        plan = [_spec(cooldown, horizons) for cooldown in method.cooldowns.values()]
        starts = [start for spec in plan for start, _ in self._points(spec)]
        end = max([*starts, *(horizons[-1:] if method.along else [])])
        _check_warmup(self.config, min([*starts, *horizons]), "a cooldown")
        config = replace(self._placed("", end), plan=plan)
        _check_trunk(config, horizons if method.along else [])
        if "average" in method.along.values() and not config.average.on:
            raise UserError(
                f"study.methods.{self.method_name}.along: reads averages, but its runs make none; "
                "add an override such as average=swa"
            )
        origin = Origin(config, "", Path(config.run.dir))
        results: list[Result] = []
        branches: list[Branch] = []
        for label, spec in zip(method.cooldowns, plan, strict=True):
            own = expand(origin, spec)
            branches += own
            results += [self._result(label, b.end, b.path, "cooldown") for b in own]
        for label, read in method.along.items():
            path = Path(config.run.dir)
            results += [
                replace(self._result(label, horizon, path, "along"), read=read)
                for horizon in horizons
            ]
        return self._stem(config, results, branches)

    def _points(self, spec: BranchSpec) -> list[tuple[int, int | None]]:
        return points(self.config, self.config, spec)

    def _result(
        self, label: str, horizon: int, run: Path, kind: Literal["cooldown", "along", "scratch"]
    ) -> Result:
        seed = self.config.run.seed
        return Result(self.size, label, seed, horizon, self.horizons[horizon], run, "loss", kind)

    def _placed(self, ending: str, total: int) -> TrainConfig:
        """The config with its end, and a name and place in the study's folder."""
        seed, root = self.config.run.seed, folder(self.study)
        name = f"{self.size}-{self.method_name}{ending}-s{seed}"
        run = replace(self.config.run, name=name, root=str(root), dir=str(root / name))
        schedule = replace(self.config.schedule, total=steps(total))
        config = replace(self.config, run=run, schedule=schedule)
        check(config)
        return config

    def _stem(
        self, config: TrainConfig, results: Sequence[Result], branches: Sequence[Branch] = ()
    ) -> Stem:
        seed, once = self.config.run.seed, _each_once(branches)
        return Stem(self.size, self.method_name, seed, config, tuple(once), tuple(results))


def _spec(cooldown: CooldownConfig, horizons: list[int]) -> BranchSpec:
    return BranchSpec(ends=[steps(horizon) for horizon in horizons], cooldown=cooldown)


def _check_warmup(config: TrainConfig, first: int, what: str) -> None:
    """Raise UserError when `what` would begin to decay at step `first`, in the warmup."""
    warm = clock_of(config).length(config.schedule.warmup, first)
    if first < warm:
        raise UserError(
            f"study.horizons: {what} would decay from step {first} on, within the warmup of {warm} "
            "steps; use longer horizons or a shorter schedule.warmup"
        )


def _check_trunk(config: TrainConfig, read: list[int]) -> None:
    """Raise UserError when a trunk cools down by itself, or is not measured where it is read."""
    schedule, clock = schedule_of(config), clock_of(config)
    if schedule.cooldown is not None:
        raise UserError(
            "schedule: this method branches, so its runs cannot decay by themselves; use "
            "schedule=constant, or scratch=true"
        )
    every = clock.length(config.eval.every, schedule.total)
    for horizon in read:
        if horizon != schedule.total and (not every or horizon % every):
            raise UserError(
                f"study.horizons: step {horizon} is read along a run, but it evaluates every "
                f"{every} steps; use an eval.every that divides it"
            )
