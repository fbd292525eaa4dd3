"""What `laws --help` says; imports nothing, so it answers at once."""

_LAWS = """usage: llm-pretrain laws fit FILE... [--budget FLOPS] [--out PAGE.html] [--json]
       llm-pretrain laws compare RUNS.json [--figure FILE.svg] [--out PAGE.html] [--json]

fit      laws of final losses: L(N, D) = E + A N^-alpha + B D^-beta, envelopes, IsoFLOP minima,
         a law in tokens for a single size; 95% intervals, errors on sizes and lengths left out.
         One law for each source in the files.
compare  the published runs of Hägele et al. 2024: the law of cooldowns against that of cosines,
         the largest size from the smaller ones, averages (SWA), and what reuse saves.

FILE is a table, as CSV or a JSON list of objects, with the columns params, tokens, loss and
optionally flops, source, run, size, seed; or the list of published runs. A count may be
written 124M or 2.6B. Without flops, C = 6 N D.

  --budget FLOPS     the best N and D for this budget, such as 1e21; several with commas
  --out PAGE.html    write a page
  --figure FILE.svg  compare: write the figure
  --json             print all numbers as one JSON object
For published runs only (a table says itself what it counts):
  --embedding counted|left-out  whether N has the embedding's parameters; counted by default
  --attention full|causal       whether C has masked scores; full by default"""


def laws_help() -> str:
    """Help of `llm-pretrain laws`."""
    return _LAWS
