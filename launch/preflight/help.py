"""What `preflight --help` says."""

from llm_pretrain.config.cluster import ClusterConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.groups import groups
from llm_pretrain.config.help import describe, docstring, wrap
from llm_pretrain.config.schema import RunConfig

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
_UNREAD = ("cluster.jobs",)


def preflight_help() -> str:
    """Help of `llm-pretrain preflight`: the fields that it reads; any other is allowed."""
    lines = [_PREFLIGHT, "Groups (choose with GROUP=OPTION):"]
    lines += wrap(f"cluster: {', '.join(groups()['cluster'])}", "  ")
    lines.append("\nFields (KEY=VALUE):")
    lines += wrap(f"engine.device=auto  {docstring(EngineConfig, 'device')}", "  ")
    lines += wrap(f"run.root=runs  {docstring(RunConfig, 'root')}", "  ")
    lines += describe(ClusterConfig, "cluster.", skip=_UNREAD)
    return "\n".join(lines)
