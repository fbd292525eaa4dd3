"""What `reanalyse --help` says."""

_REANALYSE = """usage: llm-pretrain reanalyse PATH [--out FILE.html] [--json]

Reads published training logs (PATH, a JSON list of runs) and writes one HTML page, by default
reanalysis.html here: cosine against WSD, 1-sqrt against linear, the best learning rate against the
length of the cooldown and by the theory, the bound's curve fitted to real ones, and the laws that
predict a final loss with their errors on runs that they did not see. Some minutes on two
cores. The page opens without a network.

  --out FILE.html  where the page goes
  --json           print all numbers as one JSON object; then a page is written only with --out"""


def reanalyse_help() -> str:
    """Help of `llm-pretrain reanalyse`."""
    return _REANALYSE
