"""The part of the schema that says what the learning rate does from step to step."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES, Fraction01, PositiveFloat
from llm_pretrain.duration import Duration, steps

Shape = Literal[
    "linear",
    "1-sqrt",
    "cosine",
    "mirror-cosine",
    "square",
    "power",
    "exponential",
    "half-life",
]


@dataclass(config=RULES)
class CooldownConfig:
    """The decay at the end of a run."""

    length: Duration | Literal["rest"] = steps(0)
    """"0 steps": none. "20%": of the whole run, as in the paper, rounded down to steps.
    "rest": everything after warmup, which makes cosine and linear schedules."""
    shape: Shape = "1-sqrt"
    """How the multiplier falls from its value at the start of the cooldown to `floor`, by the share
    p of the cooldown that is done: 1-p, 1-sqrt(p), ..., power: 1-p^exponent, exponential:
    floor^p. half-life: 0.5^(steps / half_life), whatever the length (MiniCPM)."""
    floor: Fraction01 = 0.0
    """Multiplier reached when the cooldown ends. "exponential" needs more than 0; "half-life" has
    none."""
    exponent: PositiveFloat | None = None
    """Of the shape "power". 0.5 is 1-sqrt, 1 linear, 2 square."""
    half_life: Duration | None = None
    """Of the shape of that name: after it the multiplier is half of what it was."""
    hold: Duration = steps(0)
    """Stretch at the end, after the cooldown, at its last multiplier."""


@dataclass(config=RULES)
class StageConfig:
    """A drop of the constant rate: two-stage schedules have one."""

    at: Duration
    """Where the rate begins to drop, in steps or tokens from step 0."""
    factor: PositiveFloat
    """Multiplier afterwards, relative to the peak."""
    ramp: Duration = steps(0)
    """Length of the linear way to it; "0 steps": at once."""


@dataclass(config=RULES)
class ScheduleConfig:
    """Warmup, constant, cooldown. Cosine and linear are a cooldown over the rest of the run."""

    total: Duration = steps(1000)
    """Length of the run, from step 0 of its oldest ancestor, in steps or tokens."""
    warmup: Duration = steps(0)
    """Warmup, counted in `total`; "2%" is of `total`."""
    warmup_from: Fraction01 = 0.01
    """Multiplier of the first warmup update."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """How the multiplier rises to 1."""
    main: Literal["constant", "inverse-sqrt", "function"] = "constant"
    """What is between warmup and cooldown. inverse-sqrt: sqrt(timescale / (timescale + n)) after n
    updates. function: `function`."""
    stages: list[StageConfig] = field(default_factory=list)
    """Drops of the constant rate, in order."""
    timescale: Duration | None = None
    """Of inverse-sqrt. Null: the length of warmup, or one step without."""
    function: str | None = None
    """Multiplier of your own, "module:name", a function of the 0-based update alone. It must be
    importable wherever the run is read (PYTHONPATH), and stay as it is while runs use it."""
    rewarmup: Duration = steps(0)
    """Of a branch; written by the branch manager from the spec's."""
    inclusive: bool = False
    """True: the last update of warmup has the multiplier 1 and the last one of the cooldown the
    floor, as in torch's OneCycleLR. False: the update after each, as in the paper's WSD."""
    cooldown: CooldownConfig = field(default_factory=CooldownConfig)
