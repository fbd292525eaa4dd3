"""The command `branch`: plan shows, apply starts, watch goes on starting."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llm_pretrain.branch.extend import propose
from llm_pretrain.branch.forecast import forecast
from llm_pretrain.branch.plan import Branch
from llm_pretrain.branch.reconcile import Look, apply, compare, wanted
from llm_pretrain.branch.show import show
from llm_pretrain.branch.watch import Watcher
from llm_pretrain.config.arguments import (
    check_flags,
    of_cluster,
    seconds_option,
    split_arguments,
)
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose_branch, override
from llm_pretrain.config.rules import check_branch_spec
from llm_pretrain.config.schema import BranchArgs, BranchSpec
from llm_pretrain.errors import EXIT_OK, UserError, did_you_mean
from llm_pretrain.runs import Run
from llm_pretrain.train.start import check_launch, launch_all

_BY = {"both": "", "rate": "lower rate", "cooldown": "longer cooldown"}
_ACTIONS = ("plan", "apply", "watch")
_WATCH_SECONDS = 30.0


def branch(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain branch ARGUMENTS`; the exit code. Raises UserError for bad input."""
    action, *rest = arguments
    if action not in _ACTIONS:
        raise UserError(f"branch {action}: no such command; {did_you_mean(action, _ACTIONS)}")
    own = ["--every"] if action == "watch" else []
    seconds = _WATCH_SECONDS
    if own:
        rest, seconds = seconds_option(rest, "--every", _WATCH_SECONDS)
    overrides, config_dir, flags = split_arguments(rest)
    check_flags(f"branch {action}", flags, [*own, "--config-dir"])
    # `branch watch RUN` reads better than with parent=, and nothing else has no equals sign.
    named = [o if "=" in o or i else f"parent={o}" for i, o in enumerate(overrides)]
    asked = compose_branch(named, config_dir)
    if not asked.parent:
        raise UserError("parent: missing; name the run to branch from: parent=runs/demo")
    place = Path(asked.parent)
    parent = Run.open(place if place.name not in ("", "..") else place.resolve())
    branches = wanted(parent, _specs(parent, asked), config_dir)
    # They run as their parent did, but for what the command line says.
    cluster = override(parent.config, of_cluster(asked.overrides), config_dir).cluster
    if action == "watch":
        return _watch(parent, branches, cluster, seconds)
    return _once(parent, branches, cluster, start=action == "apply")


def _watch(parent: Run, branches: list[Branch], cluster: ClusterConfig, seconds: float) -> int:
    check_launch(cluster)
    places = _places(parent, branches)
    watcher = Watcher(
        parent,
        branches,
        look=lambda: Look.at(places),
        foresee=lambda due: forecast(parent, due).recorded,
        launch=partial(launch_all, cluster=cluster),
    )
    return watcher.watch(seconds)


def _once(parent: Run, branches: list[Branch], cluster: ClusterConfig, *, start: bool) -> int:
    rows = compare(parent, branches, Look.at(_places(parent, branches)))
    expected = forecast(parent, branches)
    show(parent, rows, expected)
    if not start:
        return EXIT_OK
    if any(row.action in ("start", "continue") for row in rows):
        check_launch(cluster)
    runs = apply(parent, rows, expected.recorded)
    if not runs:
        print("nothing to start")
        return EXIT_OK
    return launch_all(runs, cluster)


def _places(parent: Run, branches: list[Branch]) -> list[Path]:
    return [parent.path, *(branch.path for branch in branches)]


def _specs(parent: Run, asked: BranchArgs) -> list[BranchSpec]:
    """What the command line asks for, else the plan in the run's own config."""
    if asked.extend is not None:
        return _extended(parent, asked)
    if asked.at or asked.ends:
        check_branch_spec(asked, "branch")
        plain = BranchSpec(
            kind=asked.kind,
            at=asked.at,
            ends=asked.ends,
            of=asked.of,
            spacing=asked.spacing,
            cooldown=asked.cooldown,
            rewarmup=asked.rewarmup,
            overrides=asked.overrides,
        )
        return [plain]
    if not parent.config.plan:
        raise UserError(
            f'at: missing; {parent.path} has no plan of its own. Write "at=[300 steps]" for '
            'where branches start, or "ends=[500 steps]" for their horizons'
        )
    return list(parent.config.plan)


def _extended(parent: Run, asked: BranchArgs) -> list[BranchSpec]:
    """The theory's branches to a longer horizon, which are shown with their bounds."""
    proposals = propose(parent, asked)
    kept = [p for p in proposals if p.what.startswith(_BY[asked.extend_by])]
    print(f"{parent.path} to {asked.extend}, by the bound of Schaipp et al. 2025:")
    for proposal in proposals:
        best = ", preferred" if proposal is proposals[0] and len(proposals) > 1 else ""
        print(f"  {proposal.what} (bound {proposal.bound:.3f} of going on as it is{best})")
    return [proposal.spec for proposal in kept]
