"""One optimizer update of a few blocks on fake tensors, and what it says about all of them."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.fake import FakeEngine, fake_world
from llm_pretrain.estimate.ledger import Ledger, Segment
from llm_pretrain.estimate.operation import local

CATEGORIES = (
    *("parameters", "gradients", "moments", "averages", "accumulated"),
    *("gathered", "activations", "working", "loss", "offloaded"),
)
"""What memory holds. averages: of the parameters along the run; accumulated: gradients that the
last pass has yet to reduce; gathered: parameters of whole blocks, in the type of the products, and
gradients on their way; activations: what the forward pass keeps; working: what comes and goes
within a block; loss: logits and what the loss makes of them; offloaded: activations that wait in
host memory."""

Bytes = dict[str, int]
"""Bytes by category."""

_TRACED_PASSES = 3
"""The first, which finds no gradients; one in between; the last, which reduces them."""


@dataclass(frozen=True)
class Stretch:
    """A segment of the trace with its memory."""

    segment: Segment
    growth: list[tuple[str, int, bool]]
    """Category and bytes of each allocation and release, in the order of time, and whether it
    comes once for each block between the ends."""

    def memory(self, between: int, hosted: Collection[str] = ()) -> tuple[Bytes, Bytes]:
        """How memory changes until the end, and until its peak.

        `between`: number of blocks that are not at an end. `hosted`: categories that do not count,
        since they are in host memory.
        """
        now = dict.fromkeys(CATEGORIES, 0)
        peak, largest, total = dict(now), 0, 0
        for category, size, repeated in self.growth:
            step = size * between if repeated else size
            now[category] += step
            total += 0 if category in hosted else step
            if total > largest:
                peak, largest = dict(now), total
        return now, peak


@dataclass(frozen=True)
class Trace:
    """A step of a model with few blocks. `order` tells how often each stretch comes with more."""

    stretches: list[Stretch]
    blocks: int
    passes: int
    edge: int
    """Blocks at either end that are unlike the ones between them."""
    rest: int
    """Bytes of this rank's parameters outside the blocks."""
    block: int
    """Bytes of this rank's parameters in one block."""
    waiting: int
    """Bytes of one block's activations in host memory."""
    rest_moments: int
    """Bytes that the update rule keeps of this rank's parameters outside the blocks."""
    block_moments: int
    """The same of one block."""
    piecewise: bool
    """Whether the update rule can do a step in several."""

    def parameters(self, layers: int) -> int:
        """Bytes of this rank's parameters of a model with so many blocks."""
        return self.rest + self.block * layers

    def moments(self, layers: int) -> int:
        """Bytes that the update rule keeps of them."""
        return self.rest_moments + self.block_moments * layers

    def order(self, layers: int, passes: int) -> Iterator[Stretch]:
        """The stretches of a step of a model with `layers` blocks, in the order of time."""
        per_pass = len(self.stretches[:-1]) // self.passes
        for number in range(passes):
            first = per_pass * _like(number, passes, self.passes, 1)
            forward = [_like(i, layers, self.blocks, self.edge) for i in range(layers)]
            # Embedding, blocks, head and loss with their backward pass, blocks from the last to the
            # first, embedding again.
            middle = range(self.blocks + 1, per_pass - 1 - self.blocks)
            backward = [per_pass - 2 - i for i in reversed(forward)]
            for index in (0, *(1 + i for i in forward), *middle, *backward, per_pass - 1):
                yield self.stretches[first + index]
        yield self.stretches[-1]


def _like(index: int, count: int, traced: int, edge: int) -> int:
    """Which of `traced` items stands for item `index` of `count`: the ends, or one between."""
    if count <= traced:
        return index
    from_end = count - 1 - index
    return index if index < edge else traced - 1 - from_end if from_end < edge else edge


def trace(config: TrainConfig, layout: Layout, passes: int, *, grouped: bool) -> Trace:
    """Trace an update of rank 0. `grouped`: as ranks of a process group, even if it is alone."""
    # How far blocks reach into what the ones beside them do.
    edge = 1 + config.engine.prefetch + config.engine.offload_activations
    blocks, passes = min(config.model.layers, 2 * edge + 1), min(passes, _TRACED_PASSES)
    data = config.data
    rows = min(data.micro_batch, data.global_batch // layout.data_size)
    with fake_world(layout, grouped=grouped) as world:
        ledger = Ledger()
        engine = FakeEngine(_traceable(config, blocks), world, ledger)
        _run(engine, ledger, (rows, data.sequence_length + 1), passes)
        sizes, moments = _sizes(engine)
    block, rest = sizes
    # An update treats all parameters alike, and those of the other blocks are not traced.
    work = next(s.work for s in ledger.segments if s.name == "update")
    work.traffic *= (rest + block * config.model.layers) / (rest + block * blocks)
    # Those of Muon, which are of the blocks' matrices.
    work.products *= config.model.layers / blocks
    stretches = _stretches(ledger, edge)
    first = next(s for s in stretches if s.segment.block == 0)
    waiting = sum(size for kind, size, _ in first.growth if kind == "offloaded" and size > 0)
    return Trace(
        stretches,
        blocks,
        passes,
        edge,
        rest,
        block,
        waiting,
        rest_moments=moments[1],
        block_moments=moments[0],
        piecewise=engine.rule.piecewise,
    )


def _traceable(config: TrainConfig, blocks: int) -> TrainConfig:
    """The config with so many blocks, and without what changes nothing that is traced."""
    return replace(
        config,
        model=replace(config.model, layers=blocks),
        # Compiled blocks are traced as they are written; offloaded state as if on the device.
        engine=replace(config.engine, compile=False, offload="none"),
        # What fp8's products keep for the backward pass are their inputs in bfloat16, too.
        precision=replace(config.precision, name="bf16" if config.precision.low else "fp32"),
    )


def _run(engine: FakeEngine, ledger: Ledger, shape: tuple[int, int], passes: int) -> None:
    """An update of so many passes into the ledger, each on tokens of this shape."""
    marks = _Marks(engine, ledger)
    with engine.running():
        tokens = torch.zeros(shape, dtype=torch.int64)
        for number in range(passes):
            marks.start()
            engine.forward_backward(tokens, weight=1 / passes, last=number == passes - 1)
        ledger.begin("update")
        engine.step(lr=1e-3)
    ledger.begin("end")


def _sizes(engine: FakeEngine) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes of parameters, and of what the rule keeps of them: in a block, and outside of all."""

    def both(size: Callable[[Tensor], int]) -> tuple[int, int]:
        named = list(engine.model.named_parameters())
        block = sum(size(p) for name, p in named if name.startswith("blocks.0."))
        return block, sum(size(p) for name, p in named if not name.startswith("blocks."))

    def kept(parameter: Tensor) -> int:
        # Not the count of updates.
        state = [local(t) for t in engine.rule.state[parameter].values()]
        return sum(t.untyped_storage().nbytes() for t in state if t.ndim)

    return both(lambda p: local(p).untyped_storage().nbytes()), both(kept)


class _Marks:
    """Hooks that begin a segment of the ledger where a block begins and ends."""

    def __init__(self, engine: FakeEngine, ledger: Ledger) -> None:
        self._ledger = ledger
        self._forward = False
        engine.model.head.register_forward_hook(self._logits, prepend=True)
        engine.model.register_forward_hook(self._losses, prepend=True)
        blocks = list(engine.model.blocks)
        for index, block in enumerate(blocks):
            last = index == len(blocks) - 1
            block.register_forward_pre_hook(self._before(index), prepend=True)
            block.register_forward_hook(self._after(index, last=last), prepend=True)

    def start(self) -> None:
        """A forward pass begins."""
        self._ledger.begin("embedding")
        self._forward = True

    def _before(self, index: int) -> Any:
        def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
            if not self._forward:
                return  # a block that is computed again belongs to the backward pass
            if index == 0:
                self._at_gradient(arguments[0], "backward embedding")
            self._ledger.begin("forward", index)

        return hook

    def _after(self, index: int, *, last: bool) -> Any:
        def hook(_: Any, arguments: Any, output: Tensor) -> None:
            if not self._forward:
                return
            self._at_gradient(output, "backward", index)
            if last:
                self._forward = False
                self._ledger.begin("head")

        return hook

    def _logits(self, _: Any, arguments: Any, output: Tensor) -> None:
        self._at_gradient(output, "backward head")
        self._ledger.begin("loss")

    def _losses(self, _: Any, arguments: Any, output: Tensor) -> None:
        self._at_gradient(output, "backward loss")

    def _at_gradient(self, tensor: Any, name: str, block: int | None = None) -> None:
        """Begin a segment when the gradient of `tensor` is there."""
        tensor.register_hook(lambda _: self._ledger.begin(name, block))


def _stretches(ledger: Ledger, edge: int) -> list[Stretch]:
    """Each segment between the state's and the last."""
    kinds = _categories(ledger)
    blocks = [ledger.segments[s.segment].block for s in ledger.storages]
    found: list[Stretch] = []
    segments = ledger.segments
    for segment, following in pairwise(segments[1:]):
        growth = [
            # What blocks leave behind and another segment releases is released for each of them.
            (kinds[index], size, segment.block is None and blocks[index] == edge)
            for index, size in ledger.events[segment.begin : following.begin]
        ]
        found.append(Stretch(segment, growth))
    return found


def _categories(ledger: Ledger) -> list[str]:
    """The category of each storage, by its label or else by how long it lived."""
    names = [s.name for s in ledger.segments]
    last = [0] * len(ledger.storages)
    begins = [s.begin for s in ledger.segments]
    for event, (index, _) in enumerate(ledger.events):
        last[index] = bisect_right(begins, event) - 1
    kinds = []
    for index, storage in enumerate(ledger.storages):
        end = len(names) if storage.size else last[index]
        kinds.append(_category(storage.label, names, storage.segment, end))
    return kinds


def _category(label: str, names: list[str], begin: int, end: int) -> str:
    """What a storage holds that lived from segment `begin` to `end`."""
    if label in ("parameters", "moments", "offloaded"):
        return label
    if label in ("gathered", "reducing"):
        return "gathered"
    lived = names[begin + 1 : end + 1]
    if "update" in lived or "embedding" in lived:
        return "gradients" if "update" in lived else "accumulated"
    if names[begin] in ("head", "loss", "backward loss", "backward head"):
        return "loss"
    if names[begin] in ("embedding", "forward") and "head" in lived:
        return "activations"
    return "working"
