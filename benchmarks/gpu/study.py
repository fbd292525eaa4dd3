"""A scaling law in miniature: `study=gpu_mini`, by the commands that a person would give."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.sitting import ROOT, Sitting
from llm_pretrain.study.asked import Study
from llm_pretrain.study.results import collect

NAME = "study=gpu_mini"
RUNS, LAW = "runs", "law"
PARAMETERS = ("E", "A", "B", "alpha", "beta", "exponent")
"""Of the law, as `study fit --json` names them."""
_QUICK = (
    *(f"study.sizes.m{size}=null" for size in (20, 45, 100)),
    "study.horizons=[6 steps,8 steps]",
    *(f"model.{field}" for field in ("width=32", "layers=2", "ffn=64", "heads=2", "kv_heads=2")),
    *("model.head_dim=16", "model.vocab_size=400", "data.tokenizer.vocab_size=400"),
    *("data.sources.stdlib.limit=80", "data.validation_fraction=0.2", "data.sequence_length=32"),
    *("data.global_batch=8", "data.micro_batch=8", "eval.sequences=16", "engine.compile=false"),
    "schedule.warmup=2 steps",
)
"""Seconds on a CPU: one size, and no law."""


def study(sitting: Sitting) -> None:
    """Train all of it that fits into the time, then fit the law."""
    # On the disk of the checkout, as a person's runs would be.
    (ROOT / "runs").mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".study-", dir=ROOT / "runs"))
    try:
        _study(sitting, asked(place, quick=sitting.quick))
    finally:
        shutil.rmtree(place)


def asked(place: Path, *, quick: bool) -> list[str]:
    """What names the study on a command line."""
    return [NAME, f"study.root={place}", f"data.cache={place}/cache", *(_QUICK if quick else ())]


def expected(arguments: Sequence[str] = (NAME,)) -> Iterator[tuple[str, int]]:
    """Names and tokens of all results, in the order of the study."""
    for stem in Study(arguments).stems:
        for result in stem.results:
            tokens = stem.config.data.global_batch * stem.config.data.sequence_length
            yield _named(result.size, result.label, result.horizon), result.horizon * tokens


def _named(size: str, label: str, horizon: int) -> str:
    return f"{size}, {label} to {horizon} steps"


def _study(sitting: Sitting, arguments: Sequence[str]) -> None:
    done = sitting.run(_cli("apply", *arguments))
    if done.code:
        # What has ended by then is still told.
        sitting.record(RUNS, why=done.why)
    for one in collect(Study(arguments).stems).measured:
        result, point = one.result, one.point
        facts = {"loss": one.loss, "params": point.params, "tokens": point.tokens}
        sitting.record(_named(result.size, result.label, result.horizon), facts)
    if sitting.quick:
        return
    fitted = sitting.run(_cli("fit", *arguments, "--json"))
    if fitted.code:
        sitting.record(LAW, why=fitted.why)
        return
    found = json.loads(fitted.text[fitted.text.index("{") :])
    law = next(law["parametric"] for law in found["laws"].values() if not isinstance(law, str))
    sitting.record(LAW, {"law": law, "savings": found["savings"]})


def _cli(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llm_pretrain.cli", "study", *arguments]
