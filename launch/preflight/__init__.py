"""`llm-pretrain preflight`: whether the nodes at hand are fit to train."""
