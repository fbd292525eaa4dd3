"""Tokens per second of every engine and layout on this machine's devices, by the real command.

Each variant is `torchrun ... -m llm_pretrain.train` on the same model and batch; the figures are
the run's own, from metrics.jsonl, without the first stretch, in which kernels and buffers are made.
Variants take turns. Without a GPU the ranks are processes that share the cores and talk over
loopback: the figures then show what the layouts cost, not what they gain.
Further arguments are overrides, such as `model=llama_1b precision=bf16`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.loop import QUICK
from benchmarks.result import Row, load_average, parser, ratios, report, workplace

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 2


def variants(ranks: int) -> dict[str, tuple[int, list[str]]]:
    """Name -> number of ranks and overrides."""
    found: dict[str, tuple[int, list[str]]] = {"one process": (1, [])}
    if ranks > 1:
        found |= {
            f"fsdp, shard {ranks}": (ranks, []),
            f"fsdp, replicate {ranks}": (ranks, ["engine.shard=1"]),
            f"fsdp, tensor {ranks}": (ranks, [f"engine.tensor={ranks}"]),
            f"fsdp, context {ranks}": (ranks, [f"engine.context={ranks}"]),
        }
    else:
        found["fsdp, all offloaded"] = (1, ["engine.offload=all"])
    if find_spec("deepspeed"):
        for stage in (1, 2, 3):
            zero = ["engine=deepspeed", f"engine.zero_stage={stage}"]
            found[f"deepspeed, ZeRO-{stage}, {ranks} ranks"] = (ranks, zero)
    return found


def stretches(
    ranks: int, overrides: Sequence[str], place: Path, steps: int
) -> list[dict[str, float]]:
    """Rows of metrics.jsonl with a rate, but the first two. Raises RuntimeError."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *launcher,
            f"--nproc-per-node={ranks}",
            *("-m", "llm_pretrain.train", "experiment=demo", f"run.dir={place}"),
            *(f"schedule.total={steps} steps", "schedule.warmup=1 steps", "plan=[]"),
            *("eval.sequences=16", "eval.every=0 steps", "checkpoint.every=0 steps"),
            f"logger.every={max(1, steps // 5)} steps",
            *overrides,
        ],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{overrides}: {done.stderr[-3000:]}")
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    # The first update is logged on its own, and the stretch after it still warms up.
    return [row for row in rows if "tokens_per_second" in row][2:]


def measure(place: Path, overrides: Sequence[str], quick: bool) -> list[Row]:
    """Rows of each variant: its rate, the rate over that of one process, on a GPU its memory."""
    ranks = torch.cuda.device_count() or 2
    chosen = list(variants(ranks).items())[: 2 if quick else None]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name, _ in chosen}
    cache = [f"data.cache={place / 'cache'}", *overrides]
    for turn in range(1 if quick else ROUNDS):
        for i, (name, (count, own)) in enumerate(chosen):
            run = place / f"{turn}-{i}"
            measured[name] += stretches(count, [*own, *cache], run, 5 if quick else 50)
    rates = {name: [row["tokens_per_second"] for row in rows] for name, rows in measured.items()}
    one = rates["one process"]
    rows = [Row(name, "tokens/s", values) for name, values in rates.items()]
    rows += [ratios(f"{n} / one process", values, one) for n, values in rates.items()][1:]
    for name, found in measured.items():
        memory = [row["peak_memory_gib"] for row in found if "peak_memory_gib" in row]
        rows += [Row(f"{name}: peak memory", "GiB", memory)] if memory else []
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser("engines", __doc__)
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train")
    given = options.parse_args(arguments)
    overrides = [*(QUICK if given.quick else []), *given.overrides]
    load = load_average()
    with workplace(given.folder) as place:
        rows = measure(place.resolve(), overrides, given.quick)
    report("engines", arguments, rows, load)


if __name__ == "__main__":
    main(sys.argv[1:])
