"""Which rank does what: copies, shards, parts of sequences and of matrices. Imports no torch."""

import json
from dataclasses import dataclass

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError

_OWNED = {
    "fsdp": (
        *("replicate", "shard", "context", "tensor"),
        *("reshard_after_forward", "accumulate", "prefetch"),
    ),
    "deepspeed": ("zero_stage",),
}
"""Fields that only one engine knows."""


@dataclass(frozen=True)
class Layout:
    """A grid of ranks; `tensor` varies fastest, then `context`, `shard`, and `replicate` last."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, engine: EngineConfig, size: int) -> "Layout":
        """The grid that `engine` asks for. Raises UserError when `size` ranks do not make it."""
        replicate, shard = engine.replicate, engine.shard
        inner = engine.context * engine.tensor
        rest = size // inner
        if shard is None:
            replicate = replicate or 1
            shard = rest // replicate
        elif replicate is None:
            replicate = rest // shard
        if replicate * shard * inner != size or size < 1:
            least = (engine.replicate or 1) * (engine.shard or 1) * inner
            count = f"{least}" if engine.replicate and engine.shard else f"a multiple of {least}"
            raise UserError(
                f"engine: replicate={engine.replicate or 'rest'} x shard={engine.shard or 'rest'} "
                f"x context={engine.context} x tensor={engine.tensor} does not make {size} ranks; "
                f"start {count}{', or set engine.shard=null' if engine.shard else ''}"
            )
        return cls(replicate, shard, engine.context, engine.tensor)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.data_size * self.part_size

    @property
    def data_size(self) -> int:
        """Number of parts that a global batch is cut into."""
        return self.replicate * self.shard

    @property
    def part_size(self) -> int:
        """Number of ranks that work on the same part of a batch."""
        return self.context * self.tensor

    def data_rank(self, rank: int) -> int:
        """The part of the batch that `rank` works on."""
        return rank // self.part_size

    def context_rank(self, rank: int) -> int:
        """The part of each sequence that `rank` works on."""
        return rank // self.tensor % self.context


def passes(data: DataConfig, layout: Layout) -> int:
    """Forward and backward passes of each rank for one update.

    Raises UserError when the batch cannot be cut evenly.
    """
    if data.global_batch % layout.data_size:
        raise UserError(
            f"data.global_batch: {data.global_batch} does not divide over {layout.data_size} "
            f"{'data-parallel ' if layout.part_size > 1 else ''}ranks; use a multiple of "
            f"{layout.data_size}"
        )
    rows = data.global_batch // layout.data_size
    if rows % min(data.micro_batch, rows):
        raise UserError(
            f"data.micro_batch: {data.micro_batch} does not divide the {rows} sequences of each "
            f"of {layout.data_size} ranks; use a divisor of {rows}"
        )
    return rows // min(data.micro_batch, rows)


def check_engine(config: TrainConfig) -> None:
    """Raise UserError when fields of the engine, model and data contradict each other."""
    engine = config.engine
    _check_owner(engine)
    if engine.name == "deepspeed":
        _check_deepspeed(engine)
    else:
        _check_fsdp(engine)
    if engine.offload_activations and (engine.recompute != "none" or engine.tensor > 1):
        raise UserError(
            f"engine.offload_activations: with engine.recompute={engine.recompute} and "
            f"engine.tensor={engine.tensor} it has nothing it could move; it needs recompute=none "
            "and tensor=1"
        )
    tensor, both = engine.tensor, engine.tensor * engine.context
    name = "engine.tensor x engine.context" if engine.context > 1 else "engine.tensor"
    model = config.model
    for divisor, field, value in (
        (both, "model.heads", model.heads),
        (both, "model.kv_heads", model.kv_heads),
        (both, "data.sequence_length", config.data.sequence_length),
        (tensor, "model.ffn", model.ffn),
        (tensor, "model.vocab_size", model.vocab_size),
    ):
        if value % divisor:
            raise UserError(
                f"{name if divisor == both else 'engine.tensor'}: {divisor} does not divide "
                f"{field}={value}; use a divisor of it, or {field}={-(-value // divisor) * divisor}"
            )


def _check_owner(engine: EngineConfig) -> None:
    """Raise UserError when a field of the other engine is set: it would change nothing."""
    default = EngineConfig()
    for owner, fields in _OWNED.items():
        for field in fields if owner != engine.name else ():
            value = getattr(engine, field)
            if value != getattr(default, field):
                raise UserError(
                    f"engine.{field}: {value} is for engine={owner}; with engine={engine.name} "
                    f"leave it {json.dumps(getattr(default, field))}"
                )


def _check_deepspeed(engine: EngineConfig) -> None:
    if engine.offload == "all" and engine.zero_stage < 3:
        raise UserError(
            f"engine.offload: 'all' needs engine.zero_stage=3, not {engine.zero_stage}; at stages "
            "1 and 2 use engine.offload=optimizer"
        )
    if engine.recompute == "selective" and engine.zero_stage == 3:
        raise UserError(
            "engine.recompute: at zero_stage=3 DeepSpeed gathers parameters between a block's "
            "operations, other ones the second time, which torch's selective mode refuses; use "
            "block, or zero_stage=2"
        )
    if engine.compile and engine.zero_stage == 3:
        raise UserError(
            "engine.compile: at zero_stage=3 DeepSpeed works between the modules of a block, which "
            "breaks it into pieces; use zero_stage=2 or engine=fsdp"
        )


def _check_fsdp(engine: EngineConfig) -> None:
    if engine.loss == "chunked" and engine.tensor > 1:
        raise UserError(
            f"engine.loss: chunked needs whole rows of logits, which engine.tensor={engine.tensor} "
            "cuts; use plain or auto"
        )
    if engine.offload == "optimizer":
        raise UserError(
            "engine.offload: 'optimizer' is for engine=deepspeed; FSDP2 offloads parameters and "
            "moments together: use engine.offload=all"
        )
