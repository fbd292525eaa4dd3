"""What the estimate says of a case of `measure`, in the same terms."""

import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.memory import averaged, memory_of
from llm_pretrain.estimate.trace import Bytes, Trace, trace
from tests.support import ROOT

SMALL = (
    *("data.sequence_length=128", "data.micro_batch=2", "model.vocab_size=1024"),
    *("data.tokenizer.vocab_size=1024",),
)
AVERAGES = ("average.windows=[100 steps,200 steps]", "average.half_lives=[50 steps]")
"""Three of them."""


@dataclass(frozen=True)
class Case:
    """An update of a small model on some ranks, as it is planned and as it is measured."""

    ranks: int
    passes: int
    overrides: tuple[str, ...] = ()
    bucket: int | None = None
    """Elements of DeepSpeed's buckets; None: as many as in a run."""

    @property
    def arguments(self) -> list[str]:
        """Overrides, with the batch that makes as many passes."""
        asked = [*SMALL, "engine.device=cpu", *self.overrides]
        layout = Layout.of(compose(asked).engine, self.ranks)
        return [*asked, f"data.global_batch={2 * self.passes * layout.data_size}"]

    @property
    def config(self) -> TrainConfig:
        """Of the planned run."""
        return compose(self.arguments)

    @property
    def layout(self) -> Layout:
        """Of its ranks."""
        return Layout.of(self.config.engine, self.ranks)

    @functools.cache  # noqa: B019  (a case is a constant of a test file)
    def trace(self) -> Trace:
        """Of rank 0; DeepSpeed's computes what a single process does."""
        grouped = self.ranks > 1 and self.config.engine.name == "fsdp"
        return trace(self.config, self.layout, self.passes, grouped=grouped)

    def peak(self, traced: Trace) -> int:
        """Most bytes that are allocated beside parameters, moments and averages.

        What is offloaded counts: where a CPU computes, that is the same memory.
        """
        memory = memory_of(traced, self.config, self.layout, self.passes)
        both = sum(memory.held.values()) + sum(memory.offloaded.values())
        return both - 3 * self.parameters(traced) - averaged(traced, self.config)

    def parameters(self, traced: Trace) -> int:
        """Bytes of this rank's parameters."""
        return traced.rest + traced.block * self.config.model.layers

    def after_forward(self, traced: Trace) -> int:
        """Bytes that the first forward pass leaves to the backward pass."""
        layers, now = self.config.model.layers, 0
        for stretch in traced.order(layers, self.passes):
            if stretch.segment.name == "backward loss":
                return now
            change: Bytes = stretch.memory(max(1, layers - 2 * traced.edge))[0]
            now += sum(change.values())
        raise AssertionError

    def exchanges(self, traced: Trace) -> Counter[tuple[str, str, str, int]]:
        """Kind, caller, type and bytes of the input of each collective but those of the norm."""
        found: Counter[tuple[str, str, str, int]] = Counter()
        for stretch in traced.order(self.config.model.layers, self.passes):
            for one in stretch.segment.collectives:
                share = len(one.ranks) if one.kind == "all-gather" else 1
                found[one.kind, one.by, one.dtype, one.bytes // share] += 1
        return found


def measured(cases: Iterable[tuple[str, Case]]) -> list[list[dict[str, Any]]]:
    """For each backend and case the measurements of its ranks, as `measure` explains."""
    asked = [
        {
            **{"ranks": c.ranks, "passes": c.passes, "overrides": c.arguments},
            **{"backend": backend, "bucket": c.bucket},
        }
        for backend, c in cases
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.estimate.measure"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return results
