"""What `laws --help` says; imports nothing, so it answers at once."""

_LAWS = """usage: llm-pretrain laws fit FILE... [--budget FLOPS] [--out PAGE.html] [--json]
       llm-pretrain laws compare FILE... [--figure FILE.svg] [--out PAGE.html] [--json]

fit      laws of final losses: L(N, D) = E + A N^-alpha + B D^-beta, envelopes, IsoFLOP minima,
         a law in tokens for a single size; 95% intervals (a parametric bootstrap: normal errors
         with the deviation of the residuals added to the fit, and fitted again), errors on sizes
         and horizons left out. One law for each source in the files. Runs that failed, or are far
         from a robust fit, are left out and named.
compare  the law of cooldowns against that of cosines at equal size and tokens, the largest size
         from the smaller ones, averages (SWA); of the published runs of Hägele et al. 2024 also
         what reuse saves. In a table, source says which is which: cooldown, cosine, average.

FILE is a table, as CSV or a JSON list of objects, with the columns params, tokens, loss and
optionally flops, source, run, size (its name), seed (a whole number, for your own record: runs of
several seeds are several results); or the list of published runs. A count may be written 124M or
2.6B. Without flops, C = 6 N D.

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
