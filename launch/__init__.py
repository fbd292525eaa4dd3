"""Executors for runs: this process, several local processes; later torchrun and Slurm."""
