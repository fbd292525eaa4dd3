"""What `llm-pretrain theory --help` says."""

_THEORY = """usage: llm-pretrain theory bound|transfer|extend|compare [KEY=VALUE ...] [--json]

What a bound for convex problems (Schaipp et al. 2025, arXiv 2501.18965) says about learning rates.
Its absolute values mean little for a language model; its ratios between schedules, lengths and
rates describe real runs well. --json prints everything for a program.

bound: the bound after the last update, and the best rate.
  schedule=NAME          constant, wsd, cosine, linear, inverse-sqrt, two-stage
  steps=N                updates
  lr=RATE                base rate, in units of D/G; else the best one
  D=1 G=1                distance to the optimum; size of gradients
  cooldown.length=20%    of wsd and two-stage; also of constant and inverse-sqrt
  cooldown.shape=linear  or 1-sqrt, cosine, ...; also cooldown.floor, cooldown.exponent,
                         cooldown.half_life, cooldown.hold, warmup, warmup_from, warmup_shape,
                         timescale, inclusive: as `llm-pretrain train --help` explains
  stage.at=40% stage.factor=0.5   two-stage: where the rate drops, and what remains of it

transfer: a learning rate tuned for one schedule, made fit for another.
  from=NAME to=NAME      with a percentage and a shape: wsd-20%, wsd-10%-1-sqrt, cosine,
                         cosine-10% (ends at 10% of the peak), linear, inverse-sqrt-20%
  lr=RATE steps=N        the tuned rate, and its run's length
  to.steps=N             length of the other; else the same
  warmup="300 steps"     of both

extend: a constant run carried on, beyond the length that its rate was tuned for.
  run=DIR                rate, horizon and phases are read from the run
  to="200k steps"        new horizon; also in tokens
  at="40k steps"         where its rate may change; else where its constant part ends
  cooldown.length=20% cooldown.shape=1-sqrt cooldown.floor=0
                         of a run that has none: what its rate is taken to be tuned with, at the
                         run's own horizon or steps=N
  from=NAME steps=N lr=RATE   instead of run=: any run with that schedule

compare: all schedules of one length, and the best that there are.
  steps=N lr=RATE D=1 G=1

Examples:
  llm-pretrain theory bound    schedule=wsd cooldown.length=20% steps=4000
  llm-pretrain theory transfer from=wsd-20% to=cosine lr=1e-3 steps=50000
  llm-pretrain theory extend   run=runs/demo to="200k steps"
  llm-pretrain theory compare  steps=50000

Exit codes: 0 done, 2 bad input."""


def theory_help() -> str:
    """Help of `llm-pretrain theory`."""
    return _THEORY
