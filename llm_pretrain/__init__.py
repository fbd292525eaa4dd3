"""Pretrain language models at a constant learning rate and branch cooldowns from any checkpoint."""

__version__ = "0.1.0"
