"""A whole study in miniature: a trunk, cooldowns of two shapes to three horizons, and a cosine.

Each run is what a person would start: `llm-pretrain train` and `branch apply`. A short run before
them measures the rate, from which follows how long the trunk may be. Rates are not tuned: the
cosine has twice the trunk's, as the paper found best.
"""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu import corpus
from benchmarks.gpu.plan import TINY
from benchmarks.gpu.sitting import ROOT, Sitting

SHAPES = ("1-sqrt", "linear")
PARTS = (0.5, 0.75, 1.0)
"""Horizons as parts of the longest one."""
COOLDOWN = 0.2
COSINE = "cosine"
PROBE = "rate"
_BYTES = 400_000_000
_COST = 1 + len(SHAPES) * COOLDOWN * sum(PARTS) + 1
"""Steps of all runs in longest horizons: trunk, cooldowns, cosine."""
_OVERHEAD = 90.0
"""Seconds of starts, evaluations and saves of all runs."""
_GRID = 20
_LEAST = 200
_EPOCHS = 4
_TRUNK, _RATE = "trunk", 1e-3


@dataclass(frozen=True)
class Plan:
    """How long the runs are, in steps."""

    horizon: int
    parts: Sequence[float] = PARTS

    @property
    def ends(self) -> list[int]:
        """Horizons of the cooldowns."""
        return [round(part * self.horizon) for part in self.parts]

    def experiment(self, schedule: str) -> dict[str, Any]:
        """The content of an experiment's file."""
        constant = schedule == "constant"
        horizons = [f"{end} steps" for end in self.ends]
        branches = [
            {"ends": horizons, "cooldown": {"length": f"{COOLDOWN:.0%}", "shape": shape}}
            for shape in SHAPES
        ]
        return {
            "defaults": [
                {"override /data": "python"},
                {"override /schedule": schedule},
                {"override /precision": "bf16"},
                "_self_",
            ],
            "run": {"name": _TRUNK if constant else COSINE},
            "optimizer": {"lr": _RATE if constant else 2 * _RATE},
            "schedule": {
                "total": f"{self.horizon} steps",
                "warmup": f"{min(300, self.horizon // 10)} steps",
            },
            "logger": {"every": "20 steps"},
            "eval": {"every": "0 steps", "sequences": 2000},
            "checkpoint": {"every": "0 steps"},
            "plan": branches if constant else [],
        }


def study(sitting: Sitting) -> None:
    """Prepare the text, measure the rate, then train everything that fits into the time."""
    # On the disk of the checkout, as a person's runs would be.
    (ROOT / "runs").mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".study-", dir=ROOT / "runs"))
    try:
        _study(sitting, place)
        for page in place.glob("runs/report.html"):
            shutil.copyfile(page, sitting.out / "report.html")
    finally:
        shutil.rmtree(place)


def horizon(rate: float, seconds: float, tokens: int, step: int) -> int:
    """Steps of the longest run, a multiple of 20.

    Args:
        rate: tokens per second.
        seconds: for all runs.
        tokens: of the text; no run goes through it more than four times.
        step: tokens of an update.
    """
    steps = min(rate * seconds / _COST, _EPOCHS * tokens) / step
    return max(_GRID, math.floor(steps / _GRID) * _GRID)


def results(runs: Path) -> Iterator[dict[str, Any]]:
    """Of each finished run: its name, shape and last step, and its last loss with its error."""
    for folder in sorted(path.parent for path in runs.glob("*/run.json")):
        record = json.loads((folder / "run.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = next((row for row in reversed(rows) if "val_loss" in row), None)
        if record["state"] != "finished" or last is None:
            continue
        config = yaml.safe_load((folder / "config.yaml").read_text())
        cooldown = config["schedule"].get("cooldown") or {}
        yield {
            "run": record["name"],
            "parent": (record["parent"] or {}).get("run"),
            "shape": cooldown.get("shape") if record["parent"] else record["name"],
            **{key: last[key] for key in ("step", "tokens", "val_loss", "val_stderr")},
        }


def _study(sitting: Sitting, place: Path) -> None:
    size = corpus.write(
        corpus.sources(corpus.roots()), place / "text", 3_000_000 if sitting.quick else _BYTES
    )
    conf = place / "conf"
    _write(conf / "data" / "python.yaml", _data(place, quick=sitting.quick))
    probe = Plan(4 if sitting.quick else 60)
    common = _common(place, quick=sitting.quick)
    _write(conf / "experiment" / "study.yaml", probe.experiment("constant") | {"plan": []})
    where = [f"--config-dir={conf}"]
    done = sitting.run(_cli("train", *where, "experiment=study", *common, f"run.dir={place}/probe"))
    if done.code:
        sitting.record(PROBE, why=done.why)
        return
    rate, tokens = _rate(place / "probe"), _tokens(place)
    step = _step(quick=sitting.quick)
    planned = 20 if sitting.quick else horizon(rate, sitting.left - _OVERHEAD, tokens, step)
    facts = {"rate": rate, "tokens": tokens, "bytes": size, "step": step, "horizon": planned}
    sitting.record(PROBE, facts)
    if planned < _LEAST and not sitting.quick:
        sitting.record(_TRUNK, why=f"the time is enough for {planned} steps only")
        return
    plan = Plan(planned, PARTS[-1:] if sitting.quick else PARTS)
    for schedule, name in (("constant", "study"), ("cosine", "study_cosine")):
        _write(conf / "experiment" / f"{name}.yaml", plan.experiment(schedule))
    runs = f"run.root={place}/runs"
    for name, command in (
        (_TRUNK, _cli("train", *where, "experiment=study", *common, runs)),
        ("cooldowns", _cli("branch", "apply", f"parent={place}/runs/{_TRUNK}")),
        (COSINE, _cli("train", *where, "experiment=study_cosine", *common, runs)),
        ("report", _cli("report", f"{place}/runs")),
    ):
        if not sitting.may_begin(name, 0):
            continue
        done = sitting.run(command)
        if done.code:
            sitting.record(name, why=done.why)
    for row in results(place / "runs"):
        sitting.record(row["run"], row)


def _data(place: Path, *, quick: bool) -> dict[str, Any]:
    source = {"kind": "text", "format": "parquet", "id_field": "name"}
    return {
        "validation_fraction": 0.1 if quick else 0.02,
        "cache": f"{place}/cache",
        "sequence_length": 32 if quick else 512,
        "global_batch": 8 if quick else 100,
        "micro_batch": 8 if quick else 50,
        "tokenizer": {
            "vocab_size": 400 if quick else 50304,
            "train_bytes": 1_000_000 if quick else 50_000_000,
        },
        "sources": {"python": {**source, "path": f"{place}/text/*.parquet"}},
    }


def _common(place: Path, *, quick: bool) -> list[str]:
    """Overrides of every run."""
    if quick:
        return [*TINY, "eval.sequences=16", "logger.every=1 steps", "cluster.jobs=1"]
    return ["model=paper/33m", "engine.compile=true"]


def _step(*, quick: bool) -> int:
    data = _data(Path(), quick=quick)
    return int(data["global_batch"]) * int(data["sequence_length"])


def _rate(run: Path) -> float:
    """Tokens per second of the last stretch; in the first ones, things are compiled."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([row["tokens_per_second"] for row in rows if "tokens_per_second" in row][-1])


def _tokens(place: Path) -> int:
    """Of the prepared text, for training."""
    (file,) = place.glob("cache/tokens/*/prepared.json")
    return int(json.loads(file.read_text())["tokens"]["train"])


def _cli(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llm_pretrain.cli", *arguments]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    package = "# @package _global_\n" if path.parent.name == "experiment" else ""
    path.write_text(package + yaml.safe_dump(content, sort_keys=False))


def expected() -> list[tuple[str, Sequence[float]]]:
    """Shapes and the horizons they end at, as parts of the longest one."""
    return [*((shape, PARTS) for shape in SHAPES), (COSINE, (1.0,)), (_TRUNK, (1.0,))]
