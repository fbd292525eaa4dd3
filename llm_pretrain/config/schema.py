"""The schema of a run: one dataclass per group of conf/, each field explained where it stands."""

import json
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from llm_pretrain.config.average import AverageConfig
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.fields import RULES, Positive, PositiveFloat
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.schedule import CooldownConfig, ScheduleConfig
from llm_pretrain.duration import Duration, steps

Attention = Literal["auto", "cudnn", "flash", "efficient", "math", "fa2", "fa3", "fa4", "flex"]
Library = Literal["auto", "transformer_engine", "torchao"]


@dataclass(config=RULES)
class RunConfig:
    """Who the run is and where it lives."""

    name: str = "default"
    """Name of the run; branches are named after their parent."""
    root: str = "runs"
    """Folder that holds runs, relative to the working directory."""
    dir: str = "runs/default"
    """The run directory; ${run.root}/${run.name} unless given."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial parameters and of the data order. A branch keeps its parent's."""


@dataclass(config=RULES)
class ModelConfig:
    """A Llama-style decoder: RMSNorm before each block, RoPE, SwiGLU, grouped-query attention."""

    vocab_size: Positive = 2048
    """Rows of the embedding. At least the tokenizer's vocabulary; the paper pads 50257 to 50304."""
    width: Positive = 128
    """Size of the residual stream (d)."""
    layers: Positive = 4
    """Number of transformer blocks (L)."""
    heads: Positive = 4
    """Query heads per block (H)."""
    kv_heads: Positive = 4
    """Key and value heads per block; must divide `heads`. Equal to `heads`: no grouping."""
    head_dim: Positive = 32
    """Size of a head (D); even, since RoPE rotates pairs."""
    ffn: Positive = 384
    """Inner size of SwiGLU. The paper takes 8d/3 rounded up to a multiple of 256."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies; larger for longer contexts."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon inside RMSNorm."""
    qk_norm: bool = False
    """RMSNorm on queries and keys of each head before RoPE; excludes export to Llama's format."""
    tied_embeddings: bool = True
    """Share the embedding with the output head, as the paper does."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights; projections into the residual stream get
    init_std / sqrt(2 L), as in the paper's code."""
    document_mask: bool = False
    """Attention stays within a document: tokens see nothing from before the last end of text.
    Without, a sequence is one text, as in the paper."""
    attention: Attention = "auto"
    """The kernel. auto: the fastest that is installed and passes a short trial at start. cudnn,
    flash, efficient, math: those of torch; fa2, fa3, fa4: FlashAttention's packages flash-attn,
    flash-attn-3, flash-attn-4; flex: torch's flex_attention. A run may change it when it stops."""


@dataclass(config=RULES)
class PrecisionConfig:
    """Arithmetic of the forward and backward pass; parameters and moments stay float32."""

    name: Literal["fp32", "bf16", "fp8"] = "fp32"
    """bf16: matrix products in bfloat16, norms, softmax and loss in float32. fp8: the products of
    the blocks' matrices in 8 bits, attention and the head as with bf16; needs a GPU of Hopper's
    generation or later and one of two libraries, both extras to install."""
    library: Library = "auto"
    """fp8: who does the products. auto: Transformer Engine where it works, else torchao."""
    recipe: Literal["current", "delayed", "block"] = "current"
    """fp8: where scales come from. current: each tensor's own largest value. delayed: the largest
    values of earlier steps, which are part of a checkpoint. block: one scale for 128 values, or 128
    x 128 of a weight. torchao knows the first only."""
    keep_first: Annotated[int, Field(ge=0)] = 0
    """fp8: blocks at the input that stay in bfloat16."""
    keep_last: Annotated[int, Field(ge=0)] = 0
    """fp8: blocks at the output that stay in bfloat16."""
    emulate: bool = False
    """fp8: round to 8 bits but multiply in float32, by torchao, on any device: slow, to study what
    the rounding does to a loss."""

    @property
    def low(self) -> bool:
        """Whether matrix products are done in bfloat16, or less where they can."""
        return self.name != "fp32"


@dataclass(config=RULES)
class LoggerConfig:
    """Where metrics go besides metrics.jsonl, which is always written."""

    every: Duration = steps(10)
    """Interval of training metrics. The first and last step are always logged."""
    wandb: bool = False
    """Weights & Biases; offline unless a key is configured. Its failure never stops a run."""
    tensorboard: bool = False
    """TensorBoard event files in the run directory. Its failure never stops a run."""
    kurtosis: bool = False
    """Also the kurtosis, about zero, of the blocks' outputs over the channels, mean over tokens, of
    the block where it is largest: 3 for a normal distribution. Its rise warns of outliers before
    the loss of an fp8 run shows them."""
    project: str = "llm-pretrain"
    """Project name for Weights & Biases."""


@dataclass(config=RULES)
class EvalConfig:
    """Loss on held-out text, computed on all ranks."""

    every: Duration = steps(100)
    """Interval; "0 steps": only at the end, where it always happens."""
    sequences: Positive = 256
    """Held-out sequences per evaluation, always the same, in the order of the source; fewer when
    the source has fewer."""


@dataclass(config=RULES)
class CheckpointConfig:
    """When to save, and what to keep."""

    every: Duration = steps(500)
    """Interval; "0 steps": only at the end and where `plan` needs it."""
    keep_last: Positive = 2
    """Newest checkpoints to keep. Steps that a plan needs or a branch started from are kept too."""
    keep_every: Duration = steps(0)
    """Keep every checkpoint at a multiple of this; "0 steps": none."""
    timeout: Positive = 1800
    """Seconds that a save waits for the slowest rank before it fails, and the run with it."""


@dataclass(config=RULES)
class BranchSpec:
    """Branches wanted from a run: where they start, how they end, what differs."""

    kind: Literal["train", "average"] = "train"
    """average: the branch is the mean of the run's last checkpoints, evaluated but not trained, to
    compare with a cooldown that ends at the same step (LAWA)."""
    at: list[Duration] = field(default_factory=list)
    """Starts. Excludes `ends`."""
    ends: list[Duration] = field(default_factory=list)
    """Horizons: with a 20% cooldown, the branch that ends at E starts at 80% of E."""
    cooldown: CooldownConfig = field(
        default_factory=lambda: CooldownConfig(length=Duration.parse("20%"))
    )
    """Decay of each branch, from the parent's rate at its start."""
    of: Annotated[int, Field(gt=1)] = 5
    """average: number of checkpoints, the last of them where the branch is (`at` or `ends`)."""
    spacing: Duration = steps(0)
    """average: distance between them; "0 steps": the run's checkpoint.every. In a run's own plan
    these are saved and kept."""
    rewarmup: Duration = steps(0)
    """Linear rise, at its start, from the parent's rate to the branch's own optimizer.lr, for
    continued training, also from the end of a cooldown."""
    overrides: list[str] = field(default_factory=list)
    """Anything else that differs, as on the command line: ["optimizer.lr=3e-4"]."""


@dataclass(config=RULES)
class BranchArgs(BranchSpec):
    """What `llm-pretrain branch` is asked: a spec, and the run it starts from."""

    parent: str | None = None
    """Directory of the run to branch from."""
    extend: Duration | None = None
    """A longer horizon for a constant run, such as "200k steps". Instead of `at` and `ends`: the
    theory fills in a lower rate for one branch and a longer cooldown for another."""
    extend_by: Literal["both", "rate", "cooldown"] = "both"
    """Which of the two branches."""


@dataclass(config=RULES)
class Segment:
    """A stretch of an ancestor's training: what set its learning rate and its data."""

    run: str
    """Id of the run that trained it."""
    until: Positive
    """First step that is no longer part of it."""
    lr: PositiveFloat
    """Peak learning rate."""
    schedule: ScheduleConfig
    data: DataConfig


@dataclass(config=RULES)
class TrainConfig:
    """Everything that decides a run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    plan: list[BranchSpec] = field(default_factory=list)
    """Branches wanted from this run; the steps they start from are saved and never deleted."""
    past: list[Segment] = field(default_factory=list)
    """Ancestors, oldest first; written by the branch manager, empty for a trunk."""
    mean_of: list[Positive] = field(default_factory=list)
    """Steps of the parent whose checkpoints' mean this run is; written by the branch manager, empty
    for a run that trains."""
    tuned_on: str | None = None
    """Directory of a run whose learning rate was tuned. With optimizer.lr=auto, the theory's ratio
    between the two schedules times that rate is this run's."""
    resume: str | None = None
    """Run directory to continue; everything else then comes from its config.yaml."""


def from_dict(data: dict[str, Any]) -> TrainConfig:
    """Build the dataclasses; raises pydantic's ValidationError."""
    return _ADAPTER.validate_json(dumps(data))


def dumps(data: dict[str, Any]) -> str:
    """JSON for validation: pydantic's strict mode takes dataclasses from JSON, not from dicts."""
    return json.dumps(data)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain lists, dicts, numbers and strings; `from_dict(to_dict(c)) == c`."""
    dumped: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return dumped


_ADAPTER = TypeAdapter(TrainConfig)
