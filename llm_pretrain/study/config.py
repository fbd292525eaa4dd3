"""The schema of a study, conf/study/NAME.yaml: sizes, methods, horizons, seeds."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import field
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from llm_pretrain.config.arguments import key_of
from llm_pretrain.config.fields import RULES, NonNegative, Positive, PositiveFloat
from llm_pretrain.config.schedule import CooldownConfig
from llm_pretrain.duration import Duration
from llm_pretrain.errors import UserError

_PER_PARAMETER = re.compile(r"(?P<ratio>\d+(\.\d+)?)\s*tokens/parameter")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


_EXAMPLES = '"2000 steps", "10B tokens" or "20 tokens/parameter"'
_DECIDED = {
    "run.seed": "use study.seeds",
    "run.name": "use study.name",
    "run.root": "use study.root",
    "run.dir": "use study.root and study.name",
    "run": "use study.name, study.root and study.seeds",
    "schedule.total": "use study.horizons",
    "plan": "use study.methods.NAME.cooldowns",
    "resume": "apply it again, and it goes on",
}
"""What a study decides for each of its runs, and how it is told."""


def _list_of_horizons(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"got '{value}': a list is wanted, such as [300 steps, 10M tokens]")  # noqa: TRY004
    return value


def _without_nulls(value: object) -> object:
    """On a command line, null takes an entry out of a file."""
    if not isinstance(value, dict):
        return value
    return {name: entry for name, entry in value.items() if entry is not None}


Horizons = Annotated[list[str], BeforeValidator(_list_of_horizons)]
_NULLS = BeforeValidator(_without_nulls)


@dataclass(config=RULES)
class SizeConfig:
    """A model size of a study."""

    overrides: list[str] = field(default_factory=list)
    """What makes it this size, in the grammar of `train`: ["experiment=paper/33m"]."""
    horizons: Horizons = field(default_factory=list)
    """Its own horizons; empty: those of the study."""


@dataclass(config=RULES)
class MethodConfig:
    """A way to a loss at each horizon: a trunk with cooldowns, or runs from scratch."""

    overrides: list[str] = field(default_factory=list)
    """What differs from the study's other runs: ["schedule=cosine"]."""
    lr_factor: PositiveFloat = 1.0
    """Times the learning rate of the size. The paper's cosine has twice that of its trunk."""
    cooldowns: Annotated[dict[str, CooldownConfig], _NULLS] = field(default_factory=dict)
    """Branches from one trunk to each horizon, by the name that results have: length and shape."""
    along: Annotated[dict[str, Literal["loss", "average"]], _NULLS] = field(default_factory=dict)
    """What the trunk itself has at each horizon, by the name that results have. loss: of its
    parameters, or of what its update rule evaluates. average: the best of its averages, as the
    paper's sweep of windows. The trunk then trains to the longest horizon, and must evaluate at
    each."""
    scratch: bool = False
    """A run from step 0 for each horizon. Excludes `cooldowns` and `along`."""
    only: Literal["all", "longest"] = "all"
    """Horizons of runs from scratch."""


@dataclass(config=RULES)
class RateConfig:
    """A learning rate by size: lr * (N / parameters) ** exponent, N all trained parameters."""

    lr: PositiveFloat
    """At `parameters`."""
    parameters: PositiveFloat
    """Of the size that `lr` is for."""
    exponent: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """0: the same for all sizes; negative: lower for larger ones."""


@dataclass(config=RULES)
class LimitsConfig:
    """What `apply` does not exceed. null: no limit."""

    device_hours: NonNegative | None = None
    """Of all that is left to train, by measured speed or the estimate; refused before anything
    starts."""
    disk: NonNegative | None = None
    """GiB of checkpoints that are kept, of the whole study; refused before anything starts."""
    jobs: Positive | None = None
    """Runs of the study that wait in a queue or train at once; the others wait for the next round.
    Slurm's own limit is MaxSubmitJobs."""


@dataclass(config=RULES)
class StudyConfig:
    """Trunks and the branches wanted from them: sizes x methods x horizons x seeds."""

    name: str = ""
    """Its runs are in `root`/`name`."""
    root: str = "runs"
    """Folder of studies and runs, relative to the working directory."""
    overrides: list[str] = field(default_factory=list)
    """What all runs have in common, in the grammar of `train`."""
    sizes: Annotated[dict[str, SizeConfig], _NULLS] = field(default_factory=dict)
    """Models, by the name that runs begin with; null takes one out."""
    horizons: Horizons = field(default_factory=list)
    """Lengths of training to compare: steps, tokens, or "20 tokens/parameter" of all trained
    parameters."""
    methods: Annotated[dict[str, MethodConfig], _NULLS] = field(default_factory=dict)
    """Ways to train, by the name that their runs have; null takes one out."""
    rate: RateConfig | None = None
    """Learning rate by size; null: as `overrides` say."""
    seeds: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [0])
    """Each one is a set of runs with other initial parameters and data order."""
    law: str | None = None
    """Name of the results that the law is fitted to; null: those of the first cooldown."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)


@dataclass(config=RULES)
class StudyArgs:
    """What `llm-pretrain study` is asked."""

    study: StudyConfig = field(default_factory=StudyConfig)
    overrides: list[str] = field(default_factory=list)
    """Fields of `train` given on the command line: for all runs, after the study's own."""


@dataclass(config=RULES)
class Horizon:
    """A length of training, absolute or by the size of the model."""

    length: Duration | None
    ratio: Fraction | None = None
    """Tokens for each trained parameter, where there is no length."""

    @classmethod
    def parse(cls, text: str, where: str) -> "Horizon":
        """Read "2000 steps", "10B tokens" or "20 tokens/parameter". Raises UserError."""
        match = _PER_PARAMETER.fullmatch(text.strip())
        try:
            ratio = Fraction(match["ratio"]) if match else None
            length = None if match else Duration.parse(text)
        except ValueError:
            raise UserError(f"{where}: '{text}' is no horizon; use {_EXAMPLES}") from None
        if not ratio and (length is None or length.unit == "percent" or not length.amount):
            raise UserError(f"{where}: '{text}' is no horizon; use {_EXAMPLES}")
        return cls(length, ratio)


def labels(study: StudyConfig) -> list[str]:
    """The names of all results, in the order of the methods."""
    return [label for name, method in study.methods.items() for label in labels_of(name, method)]


def labels_of(name: str, method: MethodConfig) -> list[str]:
    """The names of a method's results."""
    return [name] if method.scratch else [*method.cooldowns, *method.along]


def check_study(study: StudyConfig) -> None:
    """Raise UserError, naming field, value and what would be valid, when fields disagree."""
    if not study.name:
        raise UserError("study: missing; choose one, such as study=mini")
    for problem in _problems(study):
        raise UserError(problem)
    check_decided("study.overrides", study.overrides)
    for kind, entries in (("sizes", study.sizes), ("methods", study.methods)):
        for name, entry in entries.items():
            check_decided(f"study.{kind}.{name}.overrides", entry.overrides)


def check_decided(where: str, overrides: Iterable[str]) -> None:
    """Raise UserError for what a run may say of itself and a study says for it.

    `where`: the overrides are, for the message; empty: on the command line.
    """
    for text in overrides:
        key = key_of(text)
        for decided, instead in _DECIDED.items():
            if key == decided or key.startswith(f"{decided}."):
                name = f"{where}: " if where else ""
                raise UserError(f"{name}{text}: a study decides that for its runs; {instead}")


def _problems(study: StudyConfig) -> Iterator[str]:
    for kind in ("sizes", "methods", "seeds"):
        if not getattr(study, kind):
            yield f"study.{kind}: empty; a study needs at least one"
    for name in (study.name, *study.sizes, *study.methods):
        if not _NAME.fullmatch(name):
            yield f"study: '{name}' cannot be part of a folder's name; use letters, digits, - and _"
    for name, size in study.sizes.items():
        if not size.horizons and not study.horizons:
            yield f"study.horizons: empty, and study.sizes.{name} has none of its own"
    for name, method in study.methods.items():
        yield from _method_problems(f"study.methods.{name}", method)
    found = labels(study)
    for label in found:
        if found.count(label) > 1:
            yield f"study.methods: two results are called '{label}'; give each its own name"
    if study.law is not None and study.law not in found:
        yield f"study.law: '{study.law}' is no result of this study; use one of {', '.join(found)}"
    if len(set(study.seeds)) < len(study.seeds):
        yield f"study.seeds: {study.seeds} names one twice"


def _method_problems(name: str, method: MethodConfig) -> Iterator[str]:
    read = method.cooldowns or method.along
    if method.scratch and read:
        yield f"{name}.scratch: excludes cooldowns and along; make it another method"
    if not method.scratch and not read:
        yield f"{name}: measures nothing; give cooldowns, along, or scratch=true"
    if method.only != "all" and not method.scratch:
        yield f"{name}.only: is for runs from scratch; leave it out"
    for label, cooldown in method.cooldowns.items():
        if cooldown.length == "rest" or not cooldown.length.amount:
            yield (
                f"{name}.cooldowns.{label}.length: '{cooldown.length}' is no length of a branch; "
                'use "20%", for example'
            )
