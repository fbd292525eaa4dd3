"""Studies: sets of runs that one command plans, starts, goes on with, and fits laws to."""
