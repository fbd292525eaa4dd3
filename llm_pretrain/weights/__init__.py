"""Checkpoints as weights that other programs open."""
