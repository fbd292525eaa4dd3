"""Tokens per second of every engine and layout on this machine's devices, by the real command.

Each variant is `torchrun ... -m llm_pretrain.train` on the same model and batch; the figures are
the run's own, from metrics.jsonl, without the first stretch, in which kernels and buffers are made.
Variants take turns; rates are compared with the first one that ran. One that cannot be is left out,
with the reason. Without a GPU the ranks are processes that share the cores and talk over loopback:
the figures then show what the layouts cost, not what they gain. On a GPU the most memory that rank
0 had allocated stands beside what `llm-pretrain estimate` says, without what that only assumes.
Further arguments are overrides, such as `model=llama_1b precision=bf16`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.loop import QUICK
from benchmarks.result import Row, load_average, parser, ratios, report, workplace
from llm_pretrain.config.compose import compose
from llm_pretrain.engine.zero_config import require_deepspeed
from llm_pretrain.errors import UserError
from llm_pretrain.estimate.memory import GIB
from llm_pretrain.estimate.plan import estimate

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 2


@dataclass(frozen=True)
class Variant:
    """One way to train the model."""

    name: str
    ranks: int
    engine: Sequence[str] = ()
    """Overrides that choose it."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """What its runs measured, as metrics.jsonl has it."""

    def arguments(self, overrides: Sequence[str], steps: int) -> list[str]:
        """Of `train`, for a run of so many steps."""
        return [
            *("experiment=demo", "plan=[]", f"cluster.devices_per_node={self.ranks}"),
            *(f"schedule.total={steps} steps", "schedule.warmup=1 steps"),
            *("eval.sequences=16", "eval.every=0 steps", "checkpoint.every=0 steps"),
            *(f"logger.every={max(1, steps // 5)} steps", *overrides, *self.engine),
        ]


def variants(ranks: int) -> list[Variant]:
    """Every engine; of FSDP2 each way to cut, alone and, from four ranks on, with `shard`."""
    found = [Variant("one process", 1)]
    if ranks == 1:
        found.append(Variant("fsdp, all offloaded", 1, ["engine.offload=all"]))
    else:
        found.append(Variant(f"fsdp, shard {ranks}", ranks))
        for way in ("replicate", "context", "tensor"):
            for parts in sorted({2, ranks}):
                rest, odd = divmod(ranks, parts)
                name = f"fsdp, {way} {parts}{f' x shard {rest}' if rest > 1 else ''}"
                if not odd:
                    found.append(Variant(name, ranks, [f"engine.{way}={parts}"]))
    for stage in (1, 2, 3):
        zero = ["engine=deepspeed", f"engine.zero_stage={stage}"]
        found.append(Variant(f"deepspeed, ZeRO-{stage}, {ranks} ranks", ranks, zero))
    return found


def planned(arguments: Sequence[str]) -> float:
    """GiB that tensors will take on rank 0's device. Raises UserError when it cannot train."""
    config = compose(arguments)
    if config.engine.name == "deepspeed":
        require_deepspeed()
    memory = estimate(config).memory[config.engine.recompute]
    return sum(memory.held.values()) / GIB


def stretches(ranks: int, arguments: Sequence[str], place: Path) -> list[dict[str, float]]:
    """Train at `place`; rows of metrics.jsonl with a rate, but the first two.

    Raises UserError when a device has too little memory, RuntimeError when anything else fails.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={ranks}", "-m", "llm_pretrain.train"]
    done = subprocess.run(
        [*launcher, f"run.dir={place}", *arguments],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if "OutOfMemoryError" in done.stderr:
        raise UserError("a device ran out of memory")
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-3000:]}")
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    # The first update is logged on its own, and the stretch after it still warms up.
    return [row for row in rows if "tokens_per_second" in row][2:]


def measure(
    place: Path, chosen: list[Variant], overrides: Sequence[str], quick: bool
) -> tuple[list[Row], dict[str, str]]:
    """Rows about all variants that can be, and why each of the others cannot."""
    steps, rounds = (5, 1) if quick else (50, ROUNDS)
    overrides = [*overrides, f"data.cache={place / 'cache'}"]
    expected: dict[str, float] = {}
    refused: dict[str, str] = {}
    for turn in range(rounds):
        for i, variant in enumerate(chosen):
            if variant.name in refused:
                continue
            arguments = variant.arguments(overrides, steps)
            try:
                if turn == 0:
                    expected[variant.name] = planned(arguments)
                variant.rows.extend(stretches(variant.ranks, arguments, place / f"{turn}-{i}"))
            except UserError as error:
                refused[variant.name] = str(error)
                print(f"{variant.name}: left out ({error})", file=sys.stderr, flush=True)
    ran = [variant for variant in chosen if variant.name not in refused]
    memory = [row for v in ran for row in memory_rows(v, expected[v.name])]
    return [*rate_rows(ran), *memory], refused


def rate_rows(ran: Sequence[Variant]) -> list[Row]:
    """The rate of each variant, and that rate over the first one's."""
    rates = {v.name: [row["tokens_per_second"] for row in v.rows] for v in ran}
    rows = [Row(name, "tokens/s", values) for name, values in rates.items()]
    for name in list(rates)[1:]:
        rows.append(ratios(f"{name} / {ran[0].name}", rates[name], rates[ran[0].name]))
    return rows


def memory_rows(variant: Variant, expected: float) -> list[Row]:
    """Measured beside estimated; nothing where there is no GPU."""
    peaks = [row["peak_memory_gib"] for row in variant.rows if "peak_memory_gib" in row]
    if not peaks:
        return []
    # The run's figure only grows: the last one of a run is its peak.
    name = f"{variant.name}: peak memory"
    return [
        Row(name, "GiB", peaks),
        Row(f"{name}, estimated", "GiB", [expected]),
        ratios(f"{name} / estimated", peaks, [expected] * len(peaks)),
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser("engines", __doc__)
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    given = options.parse_args(arguments)
    overrides = [*(QUICK if given.quick else []), *given.overrides]
    chosen = variants(torch.cuda.device_count() or 2)[: 2 if given.quick else None]
    load = load_average()
    with workplace(given.folder) as place:
        rows, refused = measure(place.resolve(), chosen, overrides, given.quick)
    notes = {"left_out": "; ".join(f"{n} ({why})" for n, why in refused.items())}
    report("engines", arguments, rows, load, **(notes if refused else {}))


if __name__ == "__main__":
    main(sys.argv[1:])
