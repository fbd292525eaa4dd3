"""The text of `--help`, made from the schema: every field with its default and docstring."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from llm_pretrain.config import schema
from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.compose import compose, conf_dir, groups
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.study.config import StudyConfig

_TRAIN = """usage: llm-pretrain train [KEY=VALUE ...] [--config-dir DIR] [Hydra flags]

Trains the run that conf/train.yaml describes with your overrides, in ${run.root}/${run.name}.
The same command again continues it, or does nothing when it is finished.
resume=DIR continues the run in DIR from its own config.

With a cluster whose launcher is slurm, a job is submitted and the command returns with its number;
a multirun makes an array of jobs. --wait waits for their end; --dry-run only prints the script.

Hydra's flags work: --cfg job shows the composed config, --multirun runs every combination of
comma-separated values, --info explains the composition, --hydra-help lists the rest.
--config-dir DIR adds a folder of your own groups and experiments.
"""

_BRANCH = """usage: llm-pretrain branch plan|apply|watch RUN [KEY=VALUE ...]

plan shows which branches exist, which would start and which cannot; apply starts what is missing;
watch follows a run that trains and starts each branch when its checkpoint appears; it looks every
30 seconds, or --every SECONDS, and ends when nothing is left to start or to wait for.
Without at= or ends=, the plan in the run's own config is used. Any field of a run that may differ
from its parent can be overridden beside these (see llm-pretrain train --help).
"""

_ESTIMATE = """usage: llm-pretrain estimate [KEY=VALUE ...] [--json] [--config-dir DIR]

Says from the config alone, without a GPU, what a run needs and how fast it may be: memory of a
device and of its host, bytes a rank sends, seconds of an update. Layouts that cannot work are
refused. --json prints the numbers for a program, in bytes and seconds.

What is not given is as in conf/estimate.yaml:
{defaults} and the values below.
A run of your own is described by experiment=NAME, and what that does not give is then as `train`
has it; where it runs is described by cluster=PROFILE cluster.nodes=N.

Exit codes: 0 it fits, or the profile does not know the memory; 3 it does not fit; 2 bad input.
"""
_BENCH = """usage: llm-pretrain bench [KEY=VALUE ...] [--out FILE] [--steps N] [--trace FILE]
                                      [--config-dir DIR]

Measures what this machine can do and what training makes of it: matrix products (bf16, fp8),
copies, attention, one block, the head with its loss, and whole steps of the engine on random
tokens. Says tokens/s, TFLOP/s, MFU by both countings against the datasheet's peak and the measured
one, memory beside its estimate, where the time of a step goes, and where the host waits for the
device. It works on a CPU, too. On several devices it is started as training is:

  llm-pretrain bench model=llama_1b precision=bf16 data.micro_batch=4 data.sequence_length=4096
  torchrun --nproc-per-node 4 -m llm_pretrain.bench model=llama_8b precision=bf16

A step is one pass of data.micro_batch sequences on each device, unless data.global_batch or an
experiment is given. All else has the defaults of `train`.

--out FILE     for the JSON, with every figure, its unit and its samples: bench.json
--steps N      steps to time after three that do not count: ten, or as many as fit into 10 s
--trace FILE   keeps the profiler's trace of one step, for ui.perfetto.dev

Exit codes: 0 done; 1 another rank was lost; 2 bad input.
"""
_PREFLIGHT = """usage: llm-pretrain preflight [KEY=VALUE ...] [--json] [--out DIR] [--seconds N]
                               [--wait]

Checks within a minute whether the nodes at hand are fit to train: devices, errors that they report,
memory, clocks, binding, speed of matrix products and of all-reduces inside and between nodes, the
network that NCCL found, files, versions. With cluster.nodes, a cluster whose launcher is slurm gets
a job for it, and the command returns with its number; --wait waits for the verdict and prints it.
Else start it as you start training, one rank for each device:

  llm-pretrain preflight cluster=alps_clariden cluster.nodes=4 --wait
  srun --kill-on-bad-exit=0 llm-pretrain preflight cluster=alps_clariden --out preflight
  torchrun --nproc-per-node 8 -m launch.preflight cluster=h100_ib
  llm-pretrain preflight

Rates are judged against the median of all ranks and against cluster.hardware. What needs a GPU is
left out without one. What cannot be read is shown as such and fails nothing.

--out DIR      writes preflight.json there, and exclude.txt: nodes to do without, one on a line, for
               sbatch --exclude=$(paste -sd, DIR/exclude.txt). Later preflights add to it. Files are
               tried in DIR, else in run.root or the nearest folder above it.
--json         prints what preflight.json holds
--seconds N    time for everything, 60; more where Python starts slowly on many nodes

Exit codes: 0 fit; 3 not fit, the last line names nodes and checks; 2 bad input; 1 rank 0 is lost.
torchrun makes 1 of each that is not 0.
"""
_STUDY = """usage: llm-pretrain study plan|apply|watch|fit|report study=NAME [KEY=VALUE ...]
                          [--config-dir DIR]

A study is a set of trunks with the branches wanted from them: sizes x methods x horizons x seeds,
described in conf/study/NAME.yaml. Its runs are in runs/NAME.

plan    shows what exists, what would start and what it costs, against training from scratch
apply   starts what is missing: trunks first, branches when their checkpoints are there. Here it
        returns when all is trained; with Slurm when all that can be is submitted. The same command
        again goes on; with more horizons, trunks are prolonged and only new branches run
watch   is apply that looks again every 30 seconds, or --every SECONDS, until all has ended
fit     fits scaling laws to what was measured, with intervals; --json for a program
report  writes the page runs/NAME/study.html, or --out FILE; --figure FILE.svg draws the losses
        --embedding counted|left-out  whether N has the embedding's parameters; counted by default
        --attention full|causal       whether C has masked scores; full by default

Any field of a run may be given beside and is for all runs (see llm-pretrain train --help).
"""
_UNREAD_BY_PREFLIGHT = ("cluster.jobs",)
_ESTIMATED = ("model", "data", "precision", "engine", "cluster")
_BENCHED = ("model", "optimizer", "data", "precision", "engine")
_UNREAD = (
    "data.cache",
    "data.workers",
    "data.validation_fraction",
    "data.tokenizer",
    "data.sources",
    "cluster.launcher",
    "cluster.jobs",
    "cluster.slurm",
)


def train_help() -> str:
    """Help of `llm-pretrain train`."""
    lines = [_TRAIN, "Groups (choose with GROUP=OPTION):"]
    for group, options in groups().items():
        if group != "study":
            lines += _wrap(f"{group}: {', '.join(options)}", "  ")
    lines.append("\nFields (KEY=VALUE):")
    lines += _describe(schema.TrainConfig, "", skip=("past", "mean_of"))
    return "\n".join(lines)


def estimate_help() -> str:
    """Help of `llm-pretrain estimate`: the fields that it depends on; any other is allowed."""
    chosen = _chosen("estimate")
    defaults = " ".join(f"{group}={chosen[group]}" for group in _ESTIMATED if group != "data")
    usage = _ESTIMATE.format(defaults=defaults)
    return _help_of(usage, _ESTIMATED, ", with the values of conf/estimate.yaml", "estimate")


def bench_help() -> str:
    """Help of `llm-pretrain bench`: the fields that it depends on; any other is allowed."""
    return _help_of(_BENCH, _BENCHED, "", "train")


def _help_of(usage: str, read: Sequence[str], values: str, name: str) -> str:
    """Help of a command that depends on the groups `read`, with the values of conf/`name`.yaml."""
    lines = [usage, "Groups (choose with GROUP=OPTION):"]
    for group, options in groups().items():
        if group in (*read, "experiment"):
            lines += _wrap(f"{group}: {', '.join(options)}", "  ")
    lines.append(f"\nFields (KEY=VALUE){values}:")
    others = [f.name for f in dataclasses.fields(schema.TrainConfig) if f.name not in read]
    lines += _describe(schema.TrainConfig, "", (*others, *_UNREAD), compose([], name=name))
    return "\n".join(lines)


def preflight_help() -> str:
    """Help of `llm-pretrain preflight`: the fields that it reads; any other is allowed."""
    lines = [_PREFLIGHT, "Groups (choose with GROUP=OPTION):"]
    lines += _wrap(f"cluster: {', '.join(groups()['cluster'])}", "  ")
    lines.append("\nFields (KEY=VALUE):")
    lines += _wrap(f"engine.device=auto  {_docstring(EngineConfig, 'device')}", "  ")
    lines += _wrap(f"run.root=runs  {_docstring(schema.RunConfig, 'root')}", "  ")
    lines += _describe(ClusterConfig, "cluster.", skip=_UNREAD_BY_PREFLIGHT)
    return "\n".join(lines)


def study_help() -> str:
    """Help of `llm-pretrain study`."""
    options = _wrap(f"study: {', '.join(groups()['study'])}", "  ")
    fields = _describe(StudyConfig, "study.")
    return "\n".join([_STUDY, "Studies:", *options, "\nFields (KEY=VALUE):", *fields])


def branch_help() -> str:
    """Help of `llm-pretrain branch`."""
    return "\n".join([_BRANCH, *_describe(schema.BranchArgs, "", skip=("overrides",))])


def _chosen(name: str) -> dict[str, str]:
    """The option of each group that conf/NAME.yaml chooses."""
    listed = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text())["defaults"]
    return {
        group: option for item in listed if isinstance(item, dict) for group, option in item.items()
    }


def _describe(
    cls: Any, prefix: str, skip: tuple[str, ...] = (), values: Any = None
) -> Iterator[str]:
    """Lines about each field of a dataclass. `values`: an instance to show instead of defaults."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if name in skip:
            continue
        text = _docstring(cls, field.name)
        if hasattr(hint, "__pydantic_fields__"):
            yield from _wrap(f"{name}: {(hint.__doc__ or '').strip()}", "  ")
            yield from _describe(hint, f"{name}.", skip, getattr(values, field.name, None))
        elif (inner := _inner(hint)) is not None:
            yield from _wrap(f"{name}: {text}", "  ")
            yield from _describe(inner, f"{name}.NAME.")
        else:
            value = _default(field) if values is None else _shown(getattr(values, field.name))
            yield from _wrap(f"{name}={value}  {text}", "  ")


def _inner(hint: Any) -> Any:
    """The dataclass that a dict's values are of, if they are."""
    values = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
    return values if hasattr(values, "__pydantic_fields__") else None


def _docstring(cls: Any, name: str) -> str:
    """The text under a field where it is defined, which may be a base class."""
    owners = [c for c in cls.__mro__ if name in getattr(c, "__pydantic_fields__", {})]
    texts = (owner.__pydantic_fields__[name].description for owner in owners)
    return next((text for text in texts if text), "")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return _shown(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    return "(required)"


def _shown(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[...]"
    return "null" if value is None else str(value)


def _wrap(text: str, indent: str) -> list[str]:
    flat = " ".join(text.split())
    return textwrap.wrap(flat, 98, initial_indent=indent, subsequent_indent=indent + "      ")
