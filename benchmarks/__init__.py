"""How fast this is, each figure from one command: `python -m benchmarks.NAME`."""
