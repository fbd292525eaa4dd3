"""What `study --help` says."""

from llm_pretrain.config.groups import groups
from llm_pretrain.config.help import describe, wrap
from llm_pretrain.study.config import StudyConfig

_STUDY = """usage: llm-pretrain study plan|apply|watch|fit|report study=NAME|FOLDER [KEY=VALUE ...]
                          [--config-dir DIR]

A study is a set of trunks with the branches wanted from them: sizes x methods x horizons x seeds,
described in conf/study/NAME.yaml. Its runs are in runs/NAME. That FOLDER names the study
afterwards: apply describes there (study.yaml) what it was asked, other KEY=VALUE included.

plan    shows what exists, what would start and what it costs, against training from scratch
apply   starts what is missing: trunks first, branches when their checkpoints are there. Here it
        returns when all is trained; with Slurm when all that can be is submitted. The same command
        again goes on; with more horizons, trunks are prolonged and only new branches run
watch   is apply that looks again every 30 seconds, or --every SECONDS, until all has ended
fit     fits scaling laws to what was measured, with intervals; --json for a program. Exit code 2
        when there is no law of study.law, or of the first cooldown, after all that there is
report  writes the page runs/NAME/study.html, or --out FILE; --figure FILE.svg draws the losses
        --embedding counted|left-out  whether N has the embedding's parameters; counted by default
        --attention full|causal       whether C has masked scores; full by default

Any field of a run may be given beside and is for all runs (see llm-pretrain train --help).
"""


def study_help() -> str:
    """Help of `llm-pretrain study`."""
    options = wrap(f"study: {', '.join(groups()['study'])}", "  ")
    fields = describe(StudyConfig, "study.")
    return "\n".join([_STUDY, "Studies:", *options, "\nFields (KEY=VALUE):", *fields])
