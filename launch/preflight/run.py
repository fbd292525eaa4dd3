"""The course of a preflight on one rank; rank 0 gives the verdict on all."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from launch.preflight import between, rank, render
from launch.preflight.absence import absent
from launch.preflight.board import Board
from launch.preflight.evidence import Evidence
from launch.preflight.facts import Links, Rank
from launch.preflight.host import existing
from launch.preflight.report import EXIT_UNFIT, Report, save
from launch.preflight.states import same_gpu
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import EXIT_OK

_OWN, _ALL_OWN = 0.45, 0.5
_SHARED, _ALL_SHARED = 0.8, 0.88
"""Shares of the time at which the checks of a rank, and those between ranks, end; and at which
rank 0 no longer waits for them."""
_GOODBYE = 0.95
_BASIC = ("gpu", "memory", "matmul")
"""Checks without which an all-reduce would fail or hang."""

_RANK, _LINKS = TypeAdapter(Rank), TypeAdapter(Links)


@dataclass(frozen=True)
class Options:
    """What a person asked for beside the config."""

    json: bool = False
    """Print the report as JSON."""
    out: Path | None = None
    """Folder for the report and the list of nodes to exclude."""
    seconds: float = 60.0
    """For everything, from the start of the command."""


def run(config: TrainConfig, options: Options, began: float) -> int:
    """Check this rank and all; the exit code, the same on every rank.

    `began`: time.monotonic() at the command's start. Raises LostRankError when rank 0 is gone.
    """
    number, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    board = Board(number, size, options.seconds, began)
    checks = rank.Checks(board.begin, lambda: board.left(_OWN))
    folder = options.out or existing(Path(config.run.root))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    found, device = rank.measure(checks, number, local_rank, config.engine.device, folder)
    board.send("rank", _RANK.dump_json(found).decode())
    if number == 0:
        return _lead(board, device, config, options)
    _share(board, device)
    code = int(board.decision("end"))
    board.send("bye", "")
    return code


def obstacle(ranks: list[Rank], size: int, config: TrainConfig) -> str | None:
    """Why ranks must not try an all-reduce; None: they may."""
    if size == 1:
        return "one rank has nobody to share with"
    if len(ranks) < size:
        return "some ranks did not answer"
    broken = [one.rank for one in ranks if one.device is None or set(one.errors) & set(_BASIC)]
    if broken:
        return f"rank {broken[0]} has no working device"
    if len({one.gpu is None for one in ranks}) > 1:
        return "some ranks have a GPU and some have none"
    if any(same_gpu(Evidence(ranks, {}, [], config.cluster.hardware))):
        return "some ranks share a GPU"
    return None


def _share(board: Board, device: torch.device | None) -> None:
    """Measure together with the others, where rank 0 decides so."""
    nodes = json.loads(board.decision("nodes"))
    if nodes and device is not None:
        checks = rank.Checks(board.begin, lambda: board.left(_SHARED))
        links = between.measure(checks, board.rank, nodes, device, board.connect())
        board.send("links", _LINKS.dump_json(links).decode())


def _lead(board: Board, device: torch.device | None, config: TrainConfig, options: Options) -> int:
    """Rank 0's part: gather, decide, judge, tell; the exit code."""
    texts = board.collect("rank", _ALL_OWN)
    ranks = [_RANK.validate_json(text) for text in texts.values()]
    skipped = obstacle(ranks, board.size, config)
    board.decide("nodes", json.dumps([] if skipped else [one.node for one in ranks]))
    _share(board, device)
    links = {} if skipped else board.collect("links", _ALL_SHARED)
    answered = set(texts if skipped else links)
    evidence = Evidence(
        ranks,
        {number: _LINKS.validate_json(text) for number, text in links.items()},
        absent(board.size, answered, board.seen(), os.environ.get("SLURM_STEP_NODELIST")),
        config.cluster.hardware,
    )
    report = Report.of(evidence, config.cluster.name, skipped, board.spent())
    code = EXIT_UNFIT if report.failed else EXIT_OK
    # Before any rank ends: its launcher may then end the others.
    if options.out:
        save(report, options.out)
    render.show(report, as_json=options.json)
    board.decide("end", str(code))
    board.collect("bye", _GOODBYE, answered - {0})
    return code
