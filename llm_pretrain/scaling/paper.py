"""The published runs of Hägele et al. 2024 as points of laws: which of them, and what they cost."""

import math
from collections.abc import Sequence

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.reanalyse.comparisons import COSINE_FLOOR, is_share, model
from llm_pretrain.reanalyse.load import OFFSET, PaperRun
from llm_pretrain.scaling.counting import Counting
from llm_pretrain.scaling.points import Excluded, Point

_VOCABULARY = 50_304
_HEAD = 64
_SEQUENCE = 512
_EVERY = 200
"""Updates between two evaluations of an average."""


def config(size: tuple[int, int]) -> ModelConfig:
    """The model of a number of layers and a width, as the authors' code builds it."""
    layers, width = size
    heads = width // _HEAD
    return ModelConfig(
        vocab_size=_VOCABULARY,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=_HEAD,
        ffn=256 * math.ceil(int(8 * width / 3) / 256),
        tied_embeddings=True,
    )


def points_of(runs: Sequence[PaperRun], counting: Counting) -> tuple[list[Point], list[Excluded]]:
    """The runs over sizes and lengths at one rate a size, and the others with the reason.

    Sources: cooldown (linear, the last 20%), cosine (down to 10%), and of the trunks at the same
    lengths the loss as it is (constant) and that of the mean of the last 500 updates' weights
    (average). The averages were measured on 32 batches, whose losses are lower; what that makes at
    the end of these trunks (0.0355 nats) is added.
    """
    points, excluded = [], []
    for run in runs:
        found = _points(run, counting)
        if isinstance(found, str):
            excluded.append(Excluded(run.name, found))
        else:
            points += found
    return points, excluded


def training_flops(size: tuple[int, int], tokens: float, counting: Counting) -> float:
    """Of training this model on so many tokens."""
    return counting.flops(config(size), _SEQUENCE, tokens)


def _points(run: PaperRun, counting: Counting) -> list[Point] | str:
    reason = _unfit(run)
    if reason:
        return reason
    if run.kind != "trunk":
        source = "cosine" if run.kind == "cosine" else "cooldown"
        return [_point(run, counting, run.total, run.final or math.nan, source)]
    found = []
    for step, loss in zip(run.finals.steps, run.finals.losses, strict=True):
        found.append(_point(run, counting, step, loss, "constant"))
        near = [at for at in run.averaged.steps if step - _EVERY <= at <= step]
        averaged = run.averaged.at(near[-1]) if near else None
        if averaged is not None:
            found.append(_point(run, counting, near[-1], averaged + OFFSET[0], "average"))
    return found


def _unfit(run: PaperRun) -> str:
    """Why a run is not of the study over sizes and lengths; empty when it is."""
    cooled, cosine = run.kind == "cooldown", run.kind == "cosine"
    checks = {
        f"diverged: its last loss is {run.final}": run.diverged,
        "of the later series, over rates and shapes at one size": run.typed,
        "of another series of its size, without 'norm' in its name": "norm" not in run.name,
        "nothing measured at its end on the whole validation set": run.final is None,
        "another cooldown than the linear one over the last 20%": cooled
        and not (is_share(run) and run.shape == "linear"),
        "a cosine to another end than 10%": cosine and run.floor != COSINE_FLOOR,
    }
    return next((reason for reason, failed in checks.items() if failed), "")


def _point(run: PaperRun, counting: Counting, step: int, loss: float, source: str) -> Point:
    tokens = float(step * run.tokens_per_step)
    params = counting.params(config(run.size))
    flops = training_flops(run.size, tokens, counting)
    name = run.name if step == run.total else f"{run.name} at step {step}"
    return Point(name, model(run.size), float(params), tokens, loss, flops, source)
