"""What `report --help` says."""

_REPORT = """usage: llm-pretrain report RUNS [--out FILE.html]

Writes one HTML page about the runs in the folder RUNS (or about one run and its ancestors), by
default to RUNS/report.html, and prints a table. The page opens without a network.

  --out FILE.html  where the page goes"""


def report_help() -> str:
    """Help of `llm-pretrain report`."""
    return _REPORT
