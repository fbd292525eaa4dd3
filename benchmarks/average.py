"""What averaging costs: time of an update with and without, of a sample and an evaluation, memory.

The engine of the demo's experiment trains on random tokens, one update of its global batch after
the other, in blocks of ten that take turns with and without averages: one window of 500 steps; the
paper's sweep of five; one half-life. All are sampled every five updates. The difference of the two
is smaller than what other processes do to either, so a sample is also measured alone, and its share
of an update is a fifth of it over an update without; the aim is 1%. Putting an average in the place
of the parameters and taking it back, once for each evaluation of one, is measured apart. Memory is
what the averages' tensors hold for each parameter; 16 bytes is what parameters, gradients and
moments take.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.result import Row, load_average, parser, ratios, report, synchronize
from llm_pretrain.config.average import AverageSteps
from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.engine.fsdp import FsdpEngine
from llm_pretrain.optim.averaging import Averages, Plain, State
from llm_pretrain.world import World, join

EVERY = 5
KINDS = {
    "one window": AverageSteps(EVERY, 500, (500,), ()),
    "five windows": AverageSteps(EVERY, 500, (500, 1000, 1500, 2000, 2500), ()),
    "one half-life": AverageSteps(EVERY, 0, (), (135,)),
}
QUICK = ["model.width=32", "model.layers=2", "model.ffn=64", "data.sequence_length=32"]


@dataclass
class Training:
    """Updates on tokens that are there already."""

    engine: FsdpEngine
    passes: list[torch.Tensor]
    """The micro-batches of an update."""
    done: int = 0

    @classmethod
    def of(cls, config: TrainConfig, world: World) -> "Training":
        """What this rank does of the config's global batch."""
        draw = torch.Generator().manual_seed(config.run.seed)
        rows = config.data.global_batch // world.data_size
        shape = (rows, config.data.sequence_length + 1)
        tokens = torch.randint(config.model.vocab_size, shape, generator=draw)
        micro = min(rows, config.data.micro_batch)
        return cls(FsdpEngine(config, world), list(torch.split(tokens, micro)))

    def run(self, steps: int, averages: Averages | None) -> float:
        """Seconds for that many updates."""
        synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            for i, tokens in enumerate(self.passes):
                last = i == len(self.passes) - 1
                self.engine.forward_backward(tokens, weight=1 / len(self.passes), last=last)
            self.engine.step(1e-4)
            self.done += 1
            if averages is not None:
                averages.after(self.done)
        synchronize()
        return time.perf_counter() - began


def timed(work: Callable[[], object]) -> float:
    """Milliseconds until the device has done it."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return 1e3 * (time.perf_counter() - began)


def apply_and_take_back(averages: Averages, name: str) -> None:
    """What an evaluation does with an average, but for the evaluation."""
    with averages.applied(name):
        pass


def measure(training: Training, name: str, block: int, pairs: int) -> list[Row]:
    """Rows about one kind of averages."""
    parts = Plain(training.engine.state()["model"])
    averages = Averages(parts, KINDS[name])
    training.run(block, averages)
    times = [(training.run(block, averages), training.run(block, None)) for _ in range(pairs)]
    with_, without = ([1e3 * pair[side] / block for pair in times] for side in (0, 1))
    samples = [timed(lambda: averages.after(training.done * EVERY)) for _ in range(pairs)]
    shares = [100 * s / EVERY / u for s, u in zip(samples, without, strict=True)]
    swaps = [timed(lambda: apply_and_take_back(averages, averages.names[-1])) for _ in range(pairs)]
    values = list(_tensors(averages.state()))
    parameters = sum(part.numel() for part in parts.tensors().values())
    return [
        Row(f"{name}: update with", "ms", with_),
        Row(f"{name}: update without", "ms", without),
        ratios(f"{name}: with / without", with_, without),
        Row(f"{name}: a sample", "ms", samples),
        Row(f"{name}: share of an update", "%", shares),
        Row(f"{name}: in the parameters' place and back", "ms", swaps),
        Row(
            f"{name}: memory for each parameter",
            "bytes",
            [sum(v.nbytes for v in values) / parameters],
        ),
    ]


def _tensors(state: State) -> Iterator[torch.Tensor]:
    for value in state.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        else:
            yield value


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser("average", __doc__)
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    given = options.parse_args(arguments)
    load = load_average()
    config = compose(
        ["experiment=demo", "plan=[]", *(QUICK if given.quick else []), *given.overrides]
    )
    block, pairs = (EVERY, 2) if given.quick else (2 * EVERY, 15)
    with join(config.engine) as world:
        training = Training.of(config, world)
        rows = [row for name in KINDS for row in measure(training, name, block, pairs)]
    report("average", arguments, rows, load)


if __name__ == "__main__":
    main(sys.argv[1:])
