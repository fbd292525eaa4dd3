"""What `estimate --help` says."""

import yaml

from llm_pretrain.config.groups import conf_dir
from llm_pretrain.config.help import describe_read

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
_READ = ("model", "data", "precision", "engine", "cluster")


def estimate_help() -> str:
    """Help of `llm-pretrain estimate`: the fields that it depends on; any other is allowed."""
    listed = yaml.safe_load((conf_dir() / "estimate.yaml").read_text())["defaults"]
    chosen = {group: name for one in listed if isinstance(one, dict) for group, name in one.items()}
    defaults = " ".join(f"{group}={chosen[group]}" for group in _READ if group != "data")
    fields = describe_read(_READ, ", with the values of conf/estimate.yaml", "estimate")
    return "\n".join([_ESTIMATE.format(defaults=defaults), *fields])
