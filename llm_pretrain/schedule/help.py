"""What `schedule --help` says."""

_SCHEDULE = """usage: llm-pretrain schedule show [RUN] [KEY=VALUE ...] [--json] [--png FILE]

Prints the phases of the learning rate in steps and tokens and draws it: of the run that the
overrides describe, as for `train`, or of the run in directory RUN, with what the overrides change.
--json prints phases and rates for a program; --png writes the curve to a file that ends in .png."""


def schedule_help() -> str:
    """Help of `llm-pretrain schedule`."""
    return _SCHEDULE
