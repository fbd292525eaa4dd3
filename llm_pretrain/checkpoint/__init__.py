"""Checkpoints: complete or absent, verified on load, kept as long as a branch needs them."""
