"""Our engine against a plain Hugging Face Llama: the same model, values, batches and optimizer.

Our side is the engine of `llm-pretrain train`, fed from host memory. The other is what a person
would write with `transformers`: LlamaForCausalLM of the same shape with SDPA, the whole loss in
torch.compile, fused AdamW, gradients clipped; once with float32 weights under bf16 autocast, as we
have them, and once with all in bf16, which is less exact and takes half the memory. Sides take
turns in blocks of steps within one process; with --apart, where memory does not hold all of them,
one comes after the other, and ours once more at the end. Losses must agree.
Arguments are overrides, such as `model=llama_1b precision=bf16 engine.compile=true`.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.result import Row, free_memory, plain, ratios, synchronize
from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.base import Engine
from llm_pretrain.engine.build import build_engine
from llm_pretrain.engine.choices import settle
from llm_pretrain.model.hf import llama_names
from llm_pretrain.model.llama_config import to_llama
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.optim.adamw import decayed
from llm_pretrain.world import World, join

OURS, MIXED, PURE = "ours", "Hugging Face, float32 weights", "Hugging Face, bf16 weights"
AGAIN = "ours, again"
Weights = Mapping[str, Tensor]
"""Initial values by our names, in host memory."""


class Side(Protocol):
    """Something that trains."""

    def step(self, tokens: Tensor) -> Tensor:
        """One update on (B, T + 1) in host memory; the loss before it, on the device."""
        ...


class Ours:
    """The engine, as the training loop uses it."""

    def __init__(self, config: TrainConfig, world: World, weights: Weights) -> None:
        self.engine: Engine = build_engine(config, world, fresh=False, end_of_text=0)
        self._lr = config.optimizer.lr
        with torch.no_grad():
            for name, value in self.engine.state()["model"].items():
                value.copy_(weights[name])

    def step(self, tokens: Tensor) -> Tensor:
        """See Side."""
        loss = self.engine.forward_backward(tokens, weight=1.0, last=True)
        self.engine.step(self._lr)
        return loss


class HuggingFace:
    """LlamaForCausalLM and torch.optim.AdamW."""

    def __init__(
        self, config: TrainConfig, device: torch.device, weights: Weights, *, pure: bool
    ) -> None:
        """`pure`: weights, gradients and moments in bf16."""
        self.model = _llama(config, device)
        named = dict(self.model.named_parameters())
        names = llama_names(config.model)
        with torch.no_grad():
            for ours, name in names.items():
                named[name].copy_(weights[ours])
        self.model.to(torch.bfloat16 if pure else torch.float32)
        self._mixed = config.precision.low and not pure
        self._device = device
        self._optimizer = _adamw(config, {o: named[n] for o, n in names.items()})
        self._clip = config.optimizer.grad_clip
        self._loss = torch.compile(self._plain_loss) if config.engine.compile else self._plain_loss

    def step(self, tokens: Tensor) -> Tensor:
        """See Side."""
        tokens = tokens.to(self._device, non_blocking=True)
        loss = self._loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _plain_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            logits = self.model(input_ids=inputs, use_cache=False).logits  # (B, T, V)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@dataclass
class Trained:
    """What was seen of one side."""

    seconds: list[float] = field(default_factory=list)
    """Of each block."""
    losses: list[Tensor] = field(default_factory=list)
    """Of each step."""


@dataclass(frozen=True)
class Turns:
    """How often, in steps: `warmup` that do not count, then `rounds` blocks of `block`."""

    warmup: int
    block: int
    rounds: int

    @property
    def steps(self) -> int:
        """Of each side."""
        return self.warmup + self.block * self.rounds


def compete(
    builders: Mapping[str, Callable[[], Side]],
    batches: Sequence[Tensor],
    turns: Turns,
    *,
    apart: bool,
) -> dict[str, Trained]:
    """Train every side on the same batches; block by block, or with `apart` one after the other."""
    seen = {name: Trained() for name in builders}
    if apart:
        for name, build in builders.items():
            side = build()
            _train(side, batches, turns.warmup, seen[name], count=False)
            for _ in range(turns.rounds):
                _train(side, batches, turns.block, seen[name])
            del side
            free_memory()
        return seen
    sides = {name: build() for name, build in builders.items()}
    for name, side in sides.items():
        _train(side, batches, turns.warmup, seen[name], count=False)
    for _ in range(turns.rounds):
        for name, side in sides.items():
            _train(side, batches, turns.block, seen[name])
    return seen


def _train(
    side: Side, batches: Sequence[Tensor], steps: int, seen: Trained, *, count: bool = True
) -> None:
    synchronize()
    began = time.perf_counter()
    first = len(seen.losses)
    for tokens in batches[first : first + steps]:
        seen.losses.append(side.step(tokens))
    synchronize()
    if count:
        seen.seconds.append(time.perf_counter() - began)


def measure(config: TrainConfig, turns: Turns, *, apart: bool) -> dict[str, Any]:
    """Rows and differences of losses, for JSON. The micro-batch is the whole batch."""
    with join(config.engine) as world:
        settled = settle(config, world)
        weights = _initial(config)

        def other(*, pure: bool) -> Callable[[], Side]:
            return lambda: HuggingFace(config, world.device, weights, pure=pure)

        ours = lambda: Ours(settled.config, world, weights)  # noqa: E731
        builders: dict[str, Callable[[], Side]] = {OURS: ours, MIXED: other(pure=False)}
        if config.precision.low:
            builders[PURE] = other(pure=True)
        if apart:
            builders[AGAIN] = ours
        seen = compete(builders, _batches(config, turns.steps, world), turns, apart=apart)
    tokens = turns.block * config.data.micro_batch * config.data.sequence_length
    rates = {name: [tokens / s for s in trained.seconds] for name, trained in seen.items()}
    rows = [Row(name, "tokens/s", values) for name, values in rates.items()]
    rows += [ratios(f"{OURS} / {n}", rates[OURS], r) for n, r in rates.items() if n != OURS]
    losses = {name: torch.stack(t.losses).float().cpu() for name, t in seen.items()}
    apart_by = {n: (v - losses[OURS]).abs() for n, v in losses.items() if n != OURS}
    return {
        "rows": [{**row.to_dict(), "samples": list(row.samples)} for row in rows],
        "turns": "one after the other" if apart else "in turns",
        "computes": settled.to_dict(),
        "first_loss": {name: values[0].item() for name, values in losses.items()},
        "first_difference": {name: values[0].item() for name, values in apart_by.items()},
        "largest_difference": {name: values.max().item() for name, values in apart_by.items()},
    }


def _llama(config: TrainConfig, device: torch.device) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415  (slow to import)

    theirs = to_llama(config.model, None, config.data.sequence_length)
    theirs["attn_implementation"] = "sdpa"
    with torch.device(device):
        model: torch.nn.Module = LlamaForCausalLM(LlamaConfig(**theirs))
    return model


def _initial(config: TrainConfig) -> Weights:
    with torch.device("meta"):
        model = Transformer(config.model)
    return dict(model.initial_values(config.run.seed))


def _batches(config: TrainConfig, steps: int, world: World) -> list[Tensor]:
    """Random tokens (B, T + 1) for each step, in host memory as the training loop has them."""
    generator = torch.Generator("cpu").manual_seed(config.run.seed)
    size = config.data.micro_batch, config.data.sequence_length + 1
    made = [torch.randint(config.model.vocab_size, size, generator=generator) for _ in range(steps)]
    return [t.pin_memory() for t in made] if world.device.type == "cuda" else made


def _adamw(config: TrainConfig, parameters: Mapping[str, Tensor]) -> torch.optim.AdamW:
    """Over parameters by our names, decayed as ours are."""
    o = config.optimizer
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in parameters.items() if decayed(n, p)]},
        {"params": [p for n, p in parameters.items() if not decayed(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=o.lr,
        betas=(o.beta1, o.beta2),
        eps=o.eps,
        weight_decay=o.weight_decay,
        fused=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    options = argparse.ArgumentParser("python -m benchmarks.peers", description=__doc__)
    options.add_argument("--quick", action="store_true", help="few steps: try the code, not speed")
    options.add_argument("--apart", action="store_true", help="one side after the other")
    options.add_argument("--out", type=Path, help="file for the JSON")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    given = options.parse_args(arguments)
    turns = Turns(2, 2, 2) if given.quick else Turns(8, 5, 6)
    result = measure(compose(given.overrides), turns, apart=given.apart)
    print(plain([Row(r["what"], r["unit"], r["samples"]) for r in result["rows"]]))
    print(json.dumps(result))
    if given.out:
        given.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
