"""What there is to measure with `llm-pretrain bench`: models, kernels, and the settings of each."""

from dataclasses import dataclass
from functools import cached_property

from llm_pretrain.config.compose import compose
from llm_pretrain.model.flops import parameter_count

SEQUENCE = 4096
MODELS = {
    "1B": ("model=llama_1b",),
    "3B": ("model=llama_3b",),
    "124M": ("model=paper/124m",),
    "360M": ("model=paper/360m",),
}
"""Short name -> overrides; first what matters most."""
STACK = "8 blocks of 8B"
_STACK = ("model=llama_8b", "model.layers=8", "model.vocab_size=8192")
"""As many as fit with their moments; a small vocabulary, since the blocks are what is asked for."""
KERNELS = ("cudnn", "flash", "efficient", "fa2", "fa3", "fa4", "flex")
KERNELS_ON = ("1B", "124M")
PASSES = 4
"""Of an update whose cost is shared by several, as in long runs."""
FP8 = "precision.name=fp8"

TINY = (
    *("model=demo", "model.width=32", "model.layers=2", "model.ffn=64"),
    *("model.heads=2", "model.kv_heads=2", "model.head_dim=16"),
)
TINY_SEQUENCE = 32


@dataclass(frozen=True)
class Bench:
    """One `llm-pretrain bench`, with the largest micro-batch that fits or a given one."""

    name: str
    model: str
    compiled: bool = True
    more: tuple[str, ...] = ()
    """Further overrides."""
    passes: int = 1
    like: str | None = None
    """Another bench of the same part, whose micro-batch it shall have if that fits."""

    def overrides(self, *, quick: bool) -> list[str]:
        """All but the batch. Quick: a tiny model, never compiled."""
        length = TINY_SEQUENCE if quick else SEQUENCE
        return [
            *(TINY if quick else shape_of(self.model)),
            *("precision=bf16", f"data.sequence_length={length}"),
            f"engine.compile={str(self.compiled and not quick).lower()}",
            *self.more,
            *(["precision.emulate=true"] if quick and FP8 in self.more else []),
        ]

    @cached_property
    def state(self) -> int:
        """Bytes of parameters, gradients and moments."""
        return 16 * parameter_count(compose(shape_of(self.model)).model)

    @property
    def seconds(self) -> float:
        """How long it takes, about: initial values are drawn on the host, and a model compiled."""
        return 30 + (25 if self.compiled else 0) + 20 * self.state / 16e9


def shape_of(model: str) -> tuple[str, ...]:
    """Overrides that choose the model."""
    return _STACK if model == STACK else MODELS[model]


def speed(*, quick: bool = False) -> tuple[Bench, ...]:
    """Every model compiled, then not; then each kernel by its name."""
    compiled = [Bench(f"{m}, compiled", m) for m in MODELS]
    eager = [Bench(f"{m}, not compiled", m, compiled=False, like=f"{m}, compiled") for m in MODELS]
    kernels = [
        Bench(f"{m}, compiled, {k}", m, more=(f"model.attention={k}",), like=f"{m}, compiled")
        for m in KERNELS_ON
        for k in KERNELS
    ]
    if quick:
        chosen = [k for k in kernels if k.name in ("1B, compiled, flash", "1B, compiled, fa3")]
        return (compiled[0], *chosen)
    return (*compiled, *eager, *kernels)


def profile(*, quick: bool = False) -> tuple[Bench, ...]:
    """Updates of several passes, of which one is taken apart."""
    found = [Bench(f"{m}, {PASSES} passes", m, passes=PASSES) for m in ("1B", "3B", "124M")]
    return tuple(found[:1] if quick else found)


def fp8(*, quick: bool = False) -> tuple[Bench, ...]:
    """Pairs of bf16 and fp8 with the same batch."""
    pairs = [
        bench
        for m in ("3B", STACK, "1B")
        for bench in (Bench(f"{m}, bf16", m), Bench(f"{m}, fp8", m, more=(FP8,), like=f"{m}, bf16"))
    ]
    return tuple(pairs[:2] if quick else pairs)


PARTS = {"speed": speed, "profile": profile, "fp8": fp8}
"""Name of a part -> its benches."""
