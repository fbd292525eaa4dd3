"""Tokens per second of the real training loop against a bare PyTorch loop, side by side.

Our side is `llm-pretrain train experiment=demo` itself: session, lock, prefetching, schedule,
metrics on disk every 10 steps, console. It is timed from outside, between two steps, never by its
own meter. Evaluations and checkpoints are off but for the last step, which is not timed. The bare
side is 25 lines of PyTorch: same model, initial values, AdamW, rates and batches, the latter ready
in memory. The two take turns in blocks of steps within one process, and their losses must agree.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.result import Row, load_average, parser, ratios, report, synchronize, workplace
from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.loader import Loader
from llm_pretrain.data.prepare import prepare
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.train import session
from llm_pretrain.train.console import RunConsole
from llm_pretrain.train.start import start
from llm_pretrain.world import join

QUICK = [
    "model.width=32",
    "model.layers=2",
    "model.ffn=64",
    "data.sequence_length=32",
    "data.sources.stdlib.limit=80",
    "data.validation_fraction=0.2",
    "data.tokenizer.vocab_size=400",
    "logger.every=1 steps",
]


class BareLoop:
    """What a person would write without this project."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        with join(config.engine) as world:
            self.device = world.device
        loader, schedule = Loader(config, prepare(config.data)), schedule_of(config)
        self.batches = [torch.from_numpy(loader.batch(s)).to(self.device) for s in range(steps)]
        self.rates = [schedule.lr(s) for s in range(steps)]
        self.config, self.losses = config, list[torch.Tensor]()
        self.model = Transformer(config.model)
        self.model.initialize(config.run.seed)
        self.model.to(self.device)
        if config.engine.compile:
            for block in self.model.blocks:
                block.compile()
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if p.ndim < 2 or n.startswith("embedding")]
        decayed = [p for n, p in named if not (p.ndim < 2 or n.startswith("embedding"))]
        o = config.optimizer
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay, fused=True
        )

    def run(self, steps: int) -> None:
        """Train on the next `steps` batches."""
        clip, micro = self.config.optimizer.grad_clip, self.config.data.micro_batch
        bf16 = self.config.precision.low
        parameters = list(self.model.parameters())
        for step in range(len(self.losses), len(self.losses) + steps):
            passes = torch.split(self.batches[step], micro)
            total = torch.zeros((), device=self.device)
            for tokens in passes:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    losses = self.model(tokens[:, :-1], tokens[:, 1:])
                loss = losses.mean() / len(passes)
                loss.backward()
                total += loss.detach()
            # As in our loop: a CPU's float32 norm is 1e-5 off, which training amplifies.
            squares = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters]
            norm = torch.linalg.vector_norm(torch.stack(squares)).float()
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rates[step]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(total)


class Duel:
    """Called between two steps of our loop; after every block of them it runs one of the other."""

    def __init__(self, bare: BareLoop, warmup: int, block: int, pairs: int) -> None:
        self.ours: list[float] = []
        self.bare: list[float] = []
        """Seconds a block, pair by pair."""
        self._loop, self._warmup, self._block = bare, warmup, block
        self._last = warmup + block * pairs
        self._began = 0.0

    def __call__(self, step: int) -> None:
        """Our loop has done `step` steps."""
        if step == self._warmup:
            self._loop.run(self._warmup)
            self._begin()
        elif self._warmup < step <= self._last and (step - self._warmup) % self._block == 0:
            self.ours.append(self._seconds())
            self._begin()
            self._loop.run(self._block)
            self.bare.append(self._seconds())
            self._begin()

    def _begin(self) -> None:
        synchronize()
        self._began = time.perf_counter()

    def _seconds(self) -> float:
        synchronize()
        return time.perf_counter() - self._began


def observed(between: Callable[[int], None]) -> type[RunConsole]:
    """The real console, telling `between` when the loop moves its progress bar after a step."""

    class Observed(RunConsole):
        def advance(self, step: int) -> None:
            super().advance(step)
            between(step)

    return Observed


def largest_difference(run: Run, bare: BareLoop) -> float:
    """How far the two losses ever are apart: 0 when both did the same work."""
    theirs: list[float] = [loss.item() for loss in bare.losses]
    rows = [row for row in run.metrics() if "loss" in row and row["step"] <= len(theirs)]
    return max(abs(float(row["loss"]) - theirs[int(row["step"]) - 1]) for row in rows)


def measure(place: Path, overrides: Sequence[str], quick: bool) -> tuple[list[Row], float]:
    """The rows, and the largest difference of losses."""
    warmup, block, pairs = (2, 2, 5) if quick else (20, 10, 25)
    steps = warmup + block * pairs
    config = compose(
        [
            "experiment=demo",
            f"run.root={place}",
            f"schedule.total={steps + 1} steps",
            "schedule.warmup=1 steps",
            "eval.every=0 steps",
            "eval.sequences=8",
            "checkpoint.every=0 steps",
            "plan=[]",
            *([*QUICK, f"data.cache={place / 'cache'}"] if quick else []),
            *overrides,
        ]
    )
    bare = BareLoop(config, steps)
    duel = Duel(bare, warmup, block, pairs)
    with mock.patch.object(session, "RunConsole", observed(duel)):
        start(config)
    tokens = block * config.data.global_batch * config.data.sequence_length
    ours, other = [tokens / s for s in duel.ours], [tokens / s for s in duel.bare]
    rows = [
        Row("our loop", "tokens/s", ours),
        Row("bare PyTorch loop", "tokens/s", other),
        ratios("our loop / bare loop", ours, other),
    ]
    return rows, largest_difference(Run.open(Path(config.run.dir)), bare)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser("loop", __doc__)
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    given = options.parse_args(arguments)
    load = load_average()
    with workplace(given.folder) as place:
        rows, difference = measure(place, given.overrides, given.quick)
    report("loop", arguments, rows, load, largest_loss_difference=difference)


if __name__ == "__main__":
    main(sys.argv[1:])
